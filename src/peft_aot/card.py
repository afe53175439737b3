"""What the model card of an adapter says beyond PEFT's own: what it is, its task, its scores, how to load it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import ModelCard
from peft.config import PeftConfig

from peft_aot.stored import StoredTuner

CARD_FILE, TASK_FILE = "README.md", "task.json"
START, END = "<!-- peft_aot: start -->", "<!-- peft_aot: end -->"
LOADERS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


def complete_card(source: Path, target: Path, tag: str, sections: Sequence[str]) -> None:
    """Write a card that says what a folder of adapters holds.

    Args:
        source: The card that PEFT wrote, or an earlier one; what people added to it is kept.
        target: Where to write the completed card.
        tag: Of the method.
        sections: One per adapter, from `describe`.
    """
    card = ModelCard.load(source)
    card.data.tags = sorted({*(card.data.tags or []), "peft_aot", tag})
    before, _, rest = card.text.partition(START)
    after = rest.partition(END)[2] if rest else ""
    section = "\n\n".join(sections)
    card.text = f"{before.rstrip()}\n\n{START}\n{section}\n{END}{after}"
    card.save(target)


def read_task(folder: Path) -> dict[str, object]:
    """Read the `task.json` of an adapter's folder; empty if there is none that can be read."""
    try:
        content = json.loads((folder / TASK_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a card without scores is better than no saved adapter
        return {}
    return content if isinstance(content, dict) else {}


def describe(
    tuner: type[StoredTuner],
    adapter_name: str,
    config: PeftConfig,
    beside: str,
    task: dict[str, object],
    subfolder: str | None = None,
) -> str:
    """Return the section of the card about one adapter, as Markdown.

    Args:
        tuner: Its method's.
        adapter_name: The adapter's name.
        config: Its configuration.
        beside: A sentence about what is saved beside its values; may be empty.
        task: What its `task.json` says, see `read_task`.
        subfolder: Where the adapter stands below the folder of the card, if not in it.
    """
    backbone = config.base_model_name_or_path or "the backbone it was trained on"
    task_type = str(getattr(config.task_type, "value", config.task_type) or "")
    loader = LOADERS.get(task_type, "AutoModel")
    inside = f', subfolder="{subfolder}"' if subfolder else ""
    article = "An" if tuner.method[0] in "AEIOU" else "A"
    summary = tuner.summary(config)
    lines = [
        f"## {tuner.method} adapter",
        "",
        f"{article} [{tuner.method}]({tuner.paper}) adapter {f'({summary}) ' if summary else ''}for `{backbone}`: "
        f"{tuner.what}. {beside}".rstrip(),
        "",
        f"Task: {task.get('task') or task_type or 'not stated'}.",
    ]
    scores = task.get("scores")
    if isinstance(scores, dict) and scores:
        lines += ["", "| metric | validation score |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in scores.items() if isinstance(value, (int, float))]
    lines += [
        "",
        "```python",
        "import peft_aot  # registers the method with PEFT",
        "from peft import PeftModel",
        f"from transformers import {loader}",
        "",
        f'backbone = {loader}.from_pretrained("{backbone}")',
        'adapter = "<this folder or repository>"',
        f'model = PeftModel.from_pretrained(backbone, adapter{inside}, adapter_name="{adapter_name}")',
        "```",
    ]
    return "\n".join(lines)

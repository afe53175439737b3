"""What the model card of an adapter says beyond PEFT's own: what it is, its task, its scores, how to load it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard

if TYPE_CHECKING:
    from peft_aot.aot.config import AoTConfig

TASK_FILE = "task.json"
START, END = "<!-- peft_aot: start -->", "<!-- peft_aot: end -->"
LOADERS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


NOT_FUSED = "No fused table is included; `peft-aot fuse DIR` makes one."
FUSED = "A fused lookup table ({dtype}) is included: inference reads one row per token."


def complete_card(source: Path, target: Path, sections: Sequence[str]) -> None:
    """Write a card that says what a folder of adapters holds.

    Args:
        source: The card that PEFT wrote, or an earlier one; what people added to it is kept.
        target: Where to write the completed card.
        sections: One per adapter, from `describe`.
    """
    card = ModelCard.load(source)
    card.data.tags = sorted({*(card.data.tags or []), "peft_aot", "aot-p-tuning"})
    before, _, rest = card.text.partition(START)
    after = rest.partition(END)[2] if rest else ""
    section = "\n\n".join(sections)
    card.text = f"{before.rstrip()}\n\n{START}\n{section}\n{END}{after}"
    card.save(target)


def state_table(folder: Path, dtype: str) -> None:
    """Say in the card of a folder, if it has one, that a table has been fused into it since."""
    path = folder / "README.md"
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if NOT_FUSED in text:
            path.write_text(text.replace(NOT_FUSED, FUSED.format(dtype=dtype)), encoding="utf-8")


def read_task(folder: Path) -> dict[str, object]:
    """Read the `task.json` of an adapter's folder; empty if there is none that can be read."""
    try:
        content = json.loads((folder / TASK_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # a card without scores is better than no saved adapter
        return {}
    return content if isinstance(content, dict) else {}


def describe(
    adapter_name: str, config: AoTConfig, fused: bool, task: dict[str, object], subfolder: str | None = None
) -> str:
    """Return the section of the card about one adapter, as Markdown.

    Args:
        adapter_name: The adapter's name.
        config: Its configuration.
        fused: Whether a table is saved with it.
        task: What its `task.json` says, see `read_task`.
        subfolder: Where the adapter stands below the folder of the card, if not in it.
    """
    kind = "FC" if config.reparam == "fc" else "Kronecker"
    backbone = config.base_model_name_or_path or "the backbone it was trained on"
    task_type = str(getattr(config.task_type, "value", config.task_type) or "")
    loader = LOADERS.get(task_type, "AutoModel")
    table = FUSED.format(dtype=config.table_dtype) if fused else NOT_FUSED
    inside = f', subfolder="{subfolder}"' if subfolder else ""
    lines = [
        "## AoT P-Tuning adapter",
        "",
        f"An [AoT P-Tuning](https://arxiv.org/abs/2305.10835) adapter ({kind} reparametrization, rank {config.r}, "
        f"{config.num_layers} blocks, vocabulary {config.vocab_size}) for `{backbone}`: before every transformer block "
        f"it adds a learned row, looked up by token id, to the hidden state. {table}",
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

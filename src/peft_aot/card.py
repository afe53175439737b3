"""What the model card of an adapter says beyond PEFT's own: what it is, its task, its scores, how to load it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from huggingface_hub import ModelCard

if TYPE_CHECKING:
    from peft_aot.aot.config import AoTConfig

START, END = "<!-- peft_aot: start -->", "<!-- peft_aot: end -->"
LOADERS = {
    "SEQ_CLS": "AutoModelForSequenceClassification",
    "TOKEN_CLS": "AutoModelForTokenClassification",
    "QUESTION_ANS": "AutoModelForQuestionAnswering",
    "CAUSAL_LM": "AutoModelForCausalLM",
    "SEQ_2_SEQ_LM": "AutoModelForSeq2SeqLM",
}


def complete_card(source: Path, target: Path, adapter_name: str, config: AoTConfig, fused: bool) -> None:
    """Write the card of one adapter.

    Args:
        source: The card that PEFT wrote.
        target: Where to write the completed card; `task.json` beside it, if there, tells task and scores.
        adapter_name: The adapter's name.
        config: Its configuration.
        fused: Whether a table is saved with it.
    """
    card = ModelCard.load(source)
    card.data.tags = sorted({*(card.data.tags or []), "peft_aot", "aot-p-tuning"})
    before, _, rest = card.text.partition(START)
    after = rest.partition(END)[2] if rest else ""
    section = describe(adapter_name, config, fused, read_task(target.parent))
    card.text = f"{before.rstrip()}\n\n{START}\n{section}\n{END}{after}"
    card.save(target)


def read_task(folder: Path) -> dict[str, object]:
    """Read the `task.json` of an adapter's folder; empty if there is none."""
    path = folder / "task.json"
    if not path.is_file():
        return {}
    content: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return content


def describe(adapter_name: str, config: AoTConfig, fused: bool, task: dict[str, object]) -> str:
    """Return the section of the card that `complete_card` adds, as Markdown."""
    kind = "FC" if config.reparam == "fc" else "Kronecker"
    backbone = config.base_model_name_or_path or "the backbone it was trained on"
    task_type = str(getattr(config.task_type, "value", config.task_type) or "")
    loader = LOADERS.get(task_type, "AutoModel")
    table = (
        f"A fused lookup table ({config.table_dtype}) is included: inference reads one row per token."
        if fused
        else "No fused table is included; `peft-aot fuse DIR` makes one."
    )
    lines = [
        "## AoT P-Tuning adapter",
        "",
        f"An [AoT P-Tuning](https://arxiv.org/abs/2305.10835) adapter ({kind} reparametrization, rank {config.r}, "
        f"{config.num_layers} blocks, vocabulary {config.vocab_size}) for `{backbone}`: before every transformer block "
        f"it adds a learned row, looked up by token id, to the hidden state. {table}",
        "",
        f"Task: {task.get('name') or task_type or 'not stated'}.",
    ]
    scores = task.get("scores")
    if isinstance(scores, dict) and scores:
        lines += ["", "| metric | validation score |", "|---|---|"]
        lines += [f"| {name} | {value:.4f} |" for name, value in scores.items() if isinstance(value, float)]
    lines += [
        "",
        "```python",
        "import peft_aot  # registers the method with PEFT",
        "from peft import PeftModel",
        f"from transformers import {loader}",
        "",
        f'backbone = {loader}.from_pretrained("{backbone}")',
        f'model = PeftModel.from_pretrained(backbone, "<this folder or repository>", adapter_name="{adapter_name}")',
        "```",
    ]
    return "\n".join(lines)

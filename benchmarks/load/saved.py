"""Saved tasks with heads of random values, and each of them alone as PEFT loads it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, PeftModel
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from _tasks import AOT, LORA, save_tasks
from load.setting import Setting
from peft_aot import AoTConfig

LABELS = 4


def classifier(setting: Setting) -> nn.Module:
    """Load the backbone in transformers' class, in the format that the engine takes."""
    model: nn.Module = AutoModelForSequenceClassification.from_pretrained(
        str(setting.model), num_labels=LABELS, dtype=setting.dtype
    )
    return model.eval()


def aot_tasks(setting: Setting, number: int) -> list[Path]:
    """Return the folders of AoT tasks, made when they are first asked for."""
    return _tasks(setting, "aot", AoTConfig(**{**AOT, "task_type": "SEQ_CLS"}), number)


def lora_tasks(setting: Setting, number: int) -> list[Path]:
    """Return the folders of LoRA tasks, of query and value."""
    modules = ["q", "v"] if "mpnet" in setting.name else ["query", "value"]
    return _tasks(setting, "lora", LoraConfig(**{**LORA, "task_type": "SEQ_CLS"}, target_modules=modules), number)


def _tasks(setting: Setting, kind: str, config: PeftConfig, number: int) -> list[Path]:
    folder = setting.scratch / setting.name / kind
    if not (folder / str(number - 1)).is_dir():
        save_tasks(folder, lambda: classifier(setting).float(), config, number)
    return [folder / str(task) for task in range(number)]


def linked(folders: Sequence[Path], into: Path) -> Path:
    """Return a folder with nothing but these tasks in it, as a server takes it; files are linked, not copied."""
    for folder in folders:
        if not (into / folder.name).is_dir():
            shutil.copytree(folder, into / folder.name, copy_function=os.link)
    return into


def alone(setting: Setting, folder: Path, texts: Sequence[str]) -> Tensor:
    """Return the probabilities (texts, labels) of a task in a model of its own, one text at a time."""
    model = PeftModel.from_pretrained(classifier(setting), folder, autocast_adapter_dtype=False).eval()
    tokenizer = AutoTokenizer.from_pretrained(str(setting.model))
    with torch.inference_mode():
        rows = [model(**tokenizer(text, return_tensors="pt", truncation=True)).logits.float() for text in texts]
    return torch.cat(rows).softmax(-1)


def check(setting: Setting, name: str, found: Tensor, expected: Tensor) -> None:
    """Refuse to time what answers otherwise than each task alone.

    Raises:
        RuntimeError: It does.
    """
    off = float((found - expected).abs().max())
    if not off <= setting.tolerance:
        raise RuntimeError(f"expected {name} to answer within {setting.tolerance} of each task alone, got {off:.2g}")

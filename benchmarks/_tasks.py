"""Many saved tasks for one backbone, with random values: for benchmarks of cost, where scores mean nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import nn

from peft_aot import AoTConfig

WEIGHTS = "adapter_model.safetensors"
AOT = {"task_type": "FEATURE_EXTRACTION", "r": 64, "init_weights": False}
LORA = {"task_type": "FEATURE_EXTRACTION", "r": 8, "init_lora_weights": False}
SCALE = 0.02
"""Of random values, so that hidden states stay near what they are."""


def aot_config() -> AoTConfig:
    """The AoT adapter that is timed."""
    return AoTConfig(**AOT)


def lora_config(modules: str | list[str]) -> LoraConfig:
    """LoRA on some modules, of rank 8."""
    return LoraConfig(**LORA, target_modules=modules)


def save_tasks(
    folder: Path, backbone: Callable[[], nn.Module], config: PeftConfig, number: int, scale: float = SCALE
) -> list[Path]:
    """Write saved adapters that differ in their values, the first as PEFT does, the others like it.

    Args:
        folder: Where to.
        backbone: Makes the backbone.
        config: The adapters'.
        number: How many.
        scale: Of random values.

    Returns:
        Their folders.
    """
    torch.manual_seed(0)
    model = get_peft_model(backbone(), config)
    model.save_pretrained(str(folder / "0"))
    state = load_file(folder / "0" / WEIGHTS)
    folders = []
    for task in range(number):
        path = folder / str(task)
        path.mkdir(exist_ok=True)
        if task:
            shutil.copy(folder / "0" / "adapter_config.json", path)
        generator = torch.Generator().manual_seed(task)
        values = {name: torch.randn(t.shape, generator=generator) * scale for name, t in state.items()}
        save_file(values, path / WEIGHTS, metadata={"format": "pt"})
        folders.append(path)
    settings = json.loads((folder / "0" / "adapter_config.json").read_text())
    if not settings.get("inference_mode"):
        raise RuntimeError("expected saved adapters to be for inference, got one for training")
    return folders

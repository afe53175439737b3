"""Adapters on tiny backbones, for tests: random tables so that every row matters."""

from __future__ import annotations

from typing import Any

import torch
from peft import PeftModel, get_peft_model
from torch import nn

import peft_aot
from backbones import HEADS, build


def config(name: str, task: str, **fields: Any) -> peft_aot.AoTConfig:
    """A configuration for a task of `backbones.TASKS` whose rows are random from the start."""
    fields = {"r": 4, "init_weights": False, "dropout": 0.0, "modules_to_save": HEADS.get((name, task)), **fields}
    if task == "MULTIPLE_CHOICE":  # PEFT has no such task type
        return peft_aot.AoTConfig(**{**fields, "modules_to_save": ["classifier"]})
    return peft_aot.AoTConfig(task_type=task, **fields)


def adapted(name: str, task: str = "SEQ_CLS", num_labels: int = 2, seed: int = 3, **fields: Any) -> PeftModel:
    """A tiny backbone with one adapter, in evaluation mode."""
    backbone = build(name, task, num_labels)
    torch.manual_seed(seed)
    model = get_peft_model(backbone, config(name, task, **fields)).eval()
    for head in heads(model):
        for parameter in head.parameters():  # as if trained: each adapter its own
            parameter.data = torch.randn_like(parameter) * 0.3
    return model


def heads(model: nn.Module) -> list[nn.Module]:
    """The trained copies of heads, in `modules_to_save`."""
    from peft.utils.other import ModulesToSaveWrapper

    wrappers = [m for m in model.modules() if isinstance(m, ModulesToSaveWrapper)]
    return [head for wrapper in wrappers for head in wrapper.modules_to_save.values()]


def dense_tables(model: PeftModel, adapter_name: str = "default") -> dict[str, torch.Tensor]:
    """The whole table (V, D) of every block, computed from the factors for all tokens at once."""
    from peft_aot.backbone import find_blocks, input_embedding

    tables = {}
    stacks = {block.name: block.stack for block in find_blocks(model.get_base_model())}
    for name, layer in model.get_base_model().named_modules():
        if isinstance(layer, peft_aot.AoTLayer) and adapter_name in layer.aot_rows:
            weight = input_embedding(stacks[name]).weight
            with torch.no_grad():
                tables[name] = layer.aot_rows[adapter_name](torch.arange(len(weight)), weight)
    return tables

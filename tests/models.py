"""Adapters on tiny backbones, for tests: random tables so that every row matters."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import nn

import peft_aot
from backbones import BIASED, HEADS, build


@dataclass(frozen=True)
class Method:
    """A method as tests use it.

    Attributes:
        config: Its configuration class.
        fields: Small sizes for tiny backbones.
        written: Whether its adapters live in the backbone's parameters.
        mixes: Whether one batch may hold several of its adapters.
        needs_biases: Whether it adapts biases, which some backbones have none of.
        other: Settings of a second adapter that is as different from the first as the method allows.
    """

    config: type[PeftConfig]
    fields: dict[str, Any]
    written: bool = False
    mixes: bool = True
    needs_biases: bool = False
    other: dict[str, Any] = field(default_factory=dict)


METHODS = {
    "aot": Method(
        peft_aot.AoTConfig,
        {"r": 4, "dropout": 0.0},
        other={"reparam": "kron", "fuse_on_save": True, "table_dtype": "float32"},
    ),
    "bitfit": Method(
        peft_aot.BitFitConfig, {}, written=True, needs_biases=True, other={"exclude_modules": ["LayerNorm"]}
    ),
    "hiwi": Method(
        peft_aot.HiWiConfig, {"r": 3}, written=True, needs_biases=True, other={"r": 2, "exclude_modules": r".*\.0\..*"}
    ),
    "hiwi-weight": Method(peft_aot.HiWiConfig, {"r": 3, "target": "weight"}, written=True, mixes=False),
    "houlsby": Method(peft_aot.HoulsbyConfig, {"r": 4}, other={"r": 2, "placement": "ffn"}),
    "pafi": Method(peft_aot.PaFiConfig, {"sparsity": 0.3}, written=True, mixes=False),
}
# what is part of the name of every trained tensor, heads apart
ADAPTER_KEYS = ("aot_rows", "bitfit_", "hiwi_", "pafi_", "houlsby_")


def applies(method: str, name: str) -> bool:
    """Whether a method can adapt a tiny backbone."""
    return not METHODS[method].needs_biases or name in BIASED


def is_adapter(parameter: str) -> bool:
    """Whether a parameter of that name belongs to an adapter."""
    return any(key in parameter for key in ADAPTER_KEYS)


def config(name: str, task: str, method: str = "aot", **fields: Any) -> PeftConfig:
    """A configuration for a task of `backbones.TASKS` that changes the outputs from the start."""
    small = METHODS[method].fields
    fields = {**small, "init_weights": False, "modules_to_save": HEADS.get((name, task)), **fields}
    if task == "MULTIPLE_CHOICE":  # PEFT has no such task type
        return METHODS[method].config(**{**fields, "modules_to_save": ["classifier"]})
    return METHODS[method].config(task_type=task, **fields)


def adapted(
    name: str, task: str = "SEQ_CLS", num_labels: int = 2, seed: int = 3, method: str = "aot", **fields: Any
) -> PeftModel:
    """A tiny backbone with one adapter, in evaluation mode."""
    backbone = build(name, task, num_labels)
    torch.manual_seed(seed)
    model = get_peft_model(backbone, config(name, task, method, **fields)).eval()
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

"""A transformer block preceded by a per-token bias row.

`H'_l = H_l + P_l[x]` (AoT P-Tuning, arXiv 2305.10835, equation 1): the row of table `P_l` that belongs to each
position's token id is added to the hidden states before the block sees them. The addition stands outside the block, and
so outside the region that gradient checkpointing computes again. This file does not know where ids come from
(`token_ids`), how rows are computed (`reparam`) or where tables are stored (`tables`). One control adds no row but a
function of the hidden state (`hidden`).
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor, nn

from peft_aot.routing import tasks_of
from peft_aot.tuner import TaskLayer

from .config import AoTConfig
from .hidden import add_bottlenecks
from .lookup import Lookup
from .reparam import HiddenBottleneck, RowsModule, make_rows


class AoTLayer(TaskLayer):
    """Wraps one block; behaves as the block towards its model, and as a tuner layer towards PEFT.

    Args:
        base_layer: The block.
        name: Its name below the model, which fused tables refer to.
        lookup: Shared by all layers of the tuner.
        adapter_name: The adapter that is active from the start.
    """

    adapter_layer_names: tuple[str, ...] = ("aot_rows",)
    other_param_names: tuple[str, ...] = ()

    def __init__(self, base_layer: nn.Module, name: str, lookup: Lookup, adapter_name: str) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.aot_rows = nn.ModuleDict({})
        self.block_name = name
        self.lookup = lookup
        self.__dict__["tuner"] = lookup.tuner
        self.hidden_argument = next(iter(inspect.signature(base_layer.forward).parameters))
        self._active_adapter = adapter_name
        self._disable_adapters = False
        self._mixes_bottlenecks = False
        self.training = base_layer.training
        self.merged_adapters: list[str] = []

    def update_layer(self, adapter_name: str, config: AoTConfig, embedding_dim: int, width: int) -> None:
        """Give the block a table for one more adapter.

        Args:
            adapter_name: Its name.
            config: Its configuration.
            embedding_dim: E.
            width: D.
        """
        rows = make_rows(config, embedding_dim, width).train(self.training)
        self.aot_rows[adapter_name] = rows
        self._mixes_bottlenecks = self._mixes_bottlenecks or isinstance(rows, HiddenBottleneck)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def rows_of(self, adapter_name: str) -> RowsModule:
        """Return the module that computes an adapter's rows for this block."""
        module = self.aot_rows[adapter_name]
        if not isinstance(module, RowsModule):
            raise TypeError(f"expected rows of adapter '{adapter_name}', got {type(module).__name__}")
        return module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the block on hidden states (B, T, D) plus the rows of their tokens."""
        # torch finds submodules by detours, which small batches notice
        block, rows = self._modules["base_layer"], self.aot_rows
        if block is None or self._disable_adapters or not (rows._modules or tasks_of(self.tuner)):
            return self.base_layer(*args, **kwargs)
        names = [self._active_adapter] if isinstance(self._active_adapter, str) else self._active_adapter
        active = tuple(name for name in names if name in rows._modules)
        if args:
            return block(self._add(args[0], rows, active), *args[1:], **kwargs)
        kwargs[self.hidden_argument] = self._add(kwargs[self.hidden_argument], rows, active)
        return block(**kwargs)

    def _add(self, hidden: Tensor, rows: nn.ModuleDict, active: tuple[str, ...]) -> Tensor:
        if not self._mixes_bottlenecks:  # as nearly always
            if not active and tasks_of(self.tuner) is None:
                return hidden
            return self.lookup.add(self.block_name, hidden, rows, active)
        tasks = tasks_of(self.tuner)
        names = active if tasks is None else tasks.distinct
        asked = {name: rows[name] for name in names if name in rows}
        bottlenecks = {name: module for name, module in asked.items() if isinstance(module, HiddenBottleneck)}
        if tasks is None and not asked:
            return hidden
        if not bottlenecks:
            return self.lookup.add(self.block_name, hidden, rows, active)
        total = hidden
        if len(asked) > len(bottlenecks) or (tasks is not None and not tasks.banked.keys().isdisjoint(names)):
            total = self.lookup.add(self.block_name, hidden, rows, active)
        return add_bottlenecks(total, hidden, bottlenecks, list(active), tasks)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: see `AoTModel.merge_and_unload`."""
        raise ValueError(CANNOT_MERGE)

    def unmerge(self) -> None:
        """Do nothing, since nothing is ever merged."""

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
        # PEFT looks at `weight`; a block has none of its own
        for parameter in base_layer.parameters():
            if parameter.is_floating_point() and parameter.device.type != "meta":
                return parameter.device, parameter.dtype
        return None, None

    def __getattr__(self, name: str) -> Any:
        """Forward what the model reads from its blocks, such as `attention_type`; private names stay private."""
        try:
            return super().__getattr__(name)
        except AttributeError:
            if name.startswith("_") or name == "base_layer":
                raise
            return getattr(self.base_layer, name)


CANNOT_MERGE = (
    "expected an adapter that can be folded into weights, got AoT, whose bias depends on the token: no weight of a "
    "block can hold a different bias for every token id. Instead, fuse it into a lookup table (`fuse_on_save=True` or "
    "`peft-aot fuse DIR`), which costs one look-up per token, or call unload() for the backbone without it"
)

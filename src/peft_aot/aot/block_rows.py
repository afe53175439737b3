"""The rows before one block, computed by that block's own modules: in training, and in compiled or traced graphs.

It is also the reference of what `staged_rows` gathers for all blocks at once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from peft_aot.ops import add_rows
from peft_aot.tables import Table, TableChanged

from .plan import Plan
from .reparam import FCRows, HiddenBottleneck
from .stack_rows import precision
from .token_ids import StackCall


class Tables(Protocol):
    """Who knows adapters' tables."""

    def usable_table(self, call: StackCall, name: str) -> Table | None:
        """Return an adapter's table if it may be used in a call."""

    def let_go(self, name: str, table: Table, error: TableChanged) -> None:
        """Use a table no longer."""


@dataclass(frozen=True)
class BlockCall:
    """What the blocks of one call share.

    Attributes:
        call: The call, in whose memo stands what they share.
        plan: Which rows it needs.
        tables: Where tables come from.
    """

    call: StackCall
    plan: Plan
    tables: Tables


def add_block_rows(hidden: Tensor, block: str, rows: nn.ModuleDict, shared: BlockCall) -> Tensor:
    """Add to hidden states (B, T, D) the rows of their tokens before a block.

    Args:
        hidden: (B, T, D).
        block: The block's name.
        rows: The block's modules by adapter name.
        shared: What it shares with the other blocks.
    """
    groups = range(len(shared.plan.asked.groups))
    parts = [_group_rows(shared, group, block, rows, hidden) for group in groups]
    return add_rows(hidden, parts, shared.plan.placement)


def _group_rows(shared: BlockCall, group: int, block: str, rows: nn.ModuleDict, hidden: Tensor) -> Tensor:
    plan = shared.plan
    total: Tensor | None = None
    for name in plan.asked.groups[group]:
        if name in plan.asked.banked:
            raise RuntimeError(
                f"expected tasks of a TaskBank in eager inference, got '{name}' in a traced or compiled call or "
                f"beside an adapter in training; load it with load_adapter, or freeze that adapter"
            )
        if name not in rows or isinstance(rows[name], HiddenBottleneck):  # this adapter has no rows for this block
            continue
        part = _adapter_rows(shared, group, name, block, rows[name])
        total = part if total is None else total + part.to(total.device)
    return hidden.new_zeros(len(plan.placement.tokens[group]), hidden.shape[-1]) if total is None else total


def _adapter_rows(shared: BlockCall, group: int, name: str, block: str, module: nn.Module) -> Tensor:
    call, plan = shared.call, shared.plan
    key, tokens = (plan.asked.groups, group), plan.placement.tokens[group]
    table = shared.tables.usable_table(call, name)
    slot = None if table is None else table.layer_slot(block)
    read = call.memo.get((key, name))
    if table is not None and slot is not None and read is None:
        try:  # all layers of a token at once, on the first layer that asks
            read = call.memo[(key, name)] = table.rows(tokens)
        except TableChanged as error:
            shared.tables.let_go(name, table, error)
    if table is None or slot is None or read is None:
        return _computed(shared, group, module)
    values: Tensor = read[:, slot]
    missing = table.missing(tokens)
    if missing is not None and bool(missing.any()):
        values = values.clone()
        where = missing.to(tokens.device)
        values[missing] = module(tokens[where], plan.embeddings(group)[where]).to(values)
    return values


def _computed(shared: BlockCall, group: int, module: nn.Module) -> Tensor:
    """Compute rows; what all blocks' factors are fed is made once per call, and kept once for the backward."""
    tokens = shared.plan.placement.tokens[group]
    if isinstance(module, FCRows):
        computed: Tensor = module(tokens, _inputs(shared, group, module), prepared=True)
    else:
        computed = module(tokens)
    return computed


def _inputs(shared: BlockCall, group: int, module: FCRows) -> Tensor:
    plan, memo = shared.plan, shared.call.memo
    if torch.compiler.is_compiling():
        return module.prepare(plan.embeddings(group))
    key = ("inputs", plan.asked.groups, group, module.normalize, module.w1.dtype)
    inputs: Tensor | None = memo.get(key)
    if inputs is None:
        inputs = module.prepare(plan.embeddings(group))
        autocast = precision(inputs.device.type)
        if inputs.dtype == torch.float32 and autocast is not None and not module.dropout:
            inputs = inputs.to(autocast)  # as each product would, and keep, on its own
        memo[key] = inputs
    return inputs

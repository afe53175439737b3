"""Rows for one call: distinct tokens once per stack, tables where there are any, factors elsewhere.

Every block's layer asks the `Lookup` that its tuner's layers share. It knows adapters' tables and which tokens a call
runs on; how rows are computed or stored is the business of `reparam` and `tables`. In inference the first block that
asks has the rows of all blocks of its stack gathered into one tensor (`stage`), so that all that is left to a block is
one look-up and one addition, however many adapters a batch mixes. In training, in compiled graphs, and for
batches whose rows would take too much memory at once, each block gathers its own.
"""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from peft_aot.ops import add_rows, add_staged
from peft_aot.tables import Table, TableChanged

from .plan import Plan, make_plan
from .reparam import HiddenBottleneck
from .stack_rows import StackRows, factors_of, versions
from .stage import Buffers
from .token_ids import StackCall, current_call

STAGE_BYTES = 256 * 2**20
"""Most memory for the rows of all blocks at once; a batch that needs more has each block gather its own."""


class Lookup:
    """What the AoT layers of one tuner share: tables, and one plan per stack call.

    Args:
        tuner: The tuner that owns the layers; identifies the calls that concern them.

    Attributes:
        tables: Fused tables by adapter name.
        stacks: The wrapped blocks, by stack.
        vocab_sizes: V by adapter name.
    """

    def __init__(self, tuner: BaseTuner) -> None:
        self.tuner = tuner
        self.tables: dict[str, Table] = {}
        self.stacks: list[StackRows] = []
        self.vocab_sizes: dict[str, int] = {}
        self._versions: dict[str, tuple[int, ...]] = {}
        self._budget: int | None = None
        self._buffers = Buffers()

    def __getstate__(self) -> dict[str, Any]:
        # copied tensors count their versions anew, so that a copy keeps only tables that are fresh now
        fresh = {name: table for name, table in self.tables.items() if self._unchanged(name)}
        return {**self.__dict__, "tables": fresh, "_versions": {}}

    def add_layer(self, stack: nn.Module, block: str, modules: nn.ModuleDict, width: int) -> None:
        """Note one more wrapped block of a stack."""
        known = next((known for known in self.stacks if known.stack is stack), None)
        if known is None:
            known = StackRows(stack)
            self.stacks.append(known)
        known.add(block, modules, width)
        self._share_budget()

    def cache_rows(self, budget: int | None) -> None:
        """Keep rows that were computed from factors, in `budget` bytes for all adapters together; None keeps none."""
        if budget is not None:
            needed = sum(stack.page_bytes for stack in self.stacks)
            if type(budget) is not int or budget < needed:
                raise ValueError(
                    f"expected a number of bytes of at least {needed}, which the rows of one token may take, got "
                    f"{budget!r}; such as {256 * 2**20}"
                )
        self._budget = budget
        self._share_budget()

    def _share_budget(self) -> None:
        total = sum(stack.page_bytes for stack in self.stacks)
        for stack in self.stacks:
            stack.budget = None if self._budget is None else self._budget * stack.page_bytes // total
            stack.cache = None

    def modules_of(self, adapter_name: str) -> list[nn.Module]:
        """Return the adapter's modules, one per wrapped block, stack by stack."""
        return [module for stack in self.stacks for module in stack.modules_of(adapter_name)]

    def attach(self, adapter_name: str, table: Table) -> None:
        """Use `table` for an adapter in inference, until its factors change."""
        self.tables[adapter_name] = table
        self._versions[adapter_name] = self.factor_versions(adapter_name)

    def fresh_table(self, adapter_name: str) -> Table | None:
        """Return an adapter's table if it has one, and its factors have not changed since."""
        table = self.tables.get(adapter_name)
        return table if table is not None and self._unchanged(adapter_name) else None

    def detach(self, adapter_name: str) -> None:
        """Forget an adapter's table, if it has one, and rows computed for it before."""
        self.tables.pop(adapter_name, None)
        self._versions.pop(adapter_name, None)
        for stack in self.stacks:
            stack.forget(adapter_name)

    def add(self, block: str, hidden: Tensor, rows: nn.ModuleDict, active: Sequence[str]) -> Tensor:
        """Add to hidden states (B, T, D) the rows of their tokens before block `block`.

        Args:
            block: The block's name.
            hidden: (B, T, D).
            rows: The block's modules by adapter name.
            active: The adapters whose rows to add, unless the call is a mixed batch.
        """
        call = current_call()
        if call is None:
            raise RuntimeError(
                f"expected block {block} to run inside its model, got a direct call; call the model, which knows the "
                f"token ids"
            )
        plan = self._plan(call, hidden, tuple(active))
        staged = self._staged(call, plan, hidden, tuple(active))
        if staged is not None and block in staged:
            return add_staged(hidden, *staged[block])
        parts = [self._group_rows(call, plan, g, block, rows, hidden) for g in range(len(plan.groups))]
        return add_rows(hidden, parts, plan.placement)

    def _plan(self, call: StackCall, hidden: Tensor, active: tuple[str, ...]) -> Plan:
        key = ("plan", active)
        plan: Plan | None = call.memo.get(key)
        if plan is None:
            plan = call.memo[key] = make_plan(call, hidden, active, self.tuner, self.vocab_sizes)
        return plan

    def _staged(
        self, call: StackCall, plan: Plan, hidden: Tensor, active: tuple[str, ...]
    ) -> dict[str, tuple[Tensor, Tensor]] | None:
        """Return (rows, positions) of every block of the running stack, or None where each block computes its own."""
        if torch.compiler.is_compiling():
            return None
        key = ("rows", active, hidden.dtype, hidden.device)
        if key not in call.memo:
            layers = next((layers for layers in self.stacks if layers.stack is call.stack), None)
            trains = torch.is_grad_enabled() and self._train(itertools.chain(*plan.groups))
            call.memo[key] = None if layers is None or trains else self._stage(call, plan, hidden, layers)
        staged: dict[str, tuple[Tensor, Tensor]] | None = call.memo[key]
        return staged

    def _stage(
        self, call: StackCall, plan: Plan, hidden: Tensor, layers: StackRows
    ) -> dict[str, tuple[Tensor, Tensor]] | None:
        sizes = [len(tokens) for tokens in plan.placement.tokens]
        shape = (len(layers.blocks), sum(sizes) + plan.placement.zero_row, hidden.shape[-1])
        if math.prod(shape) * hidden.dtype.itemsize > STAGE_BYTES:
            return None
        buffer = self._buffers.borrow(math.prod(shape), hidden.dtype, hidden.device)
        call.at_end.append(functools.partial(self._buffers.give_back, buffer))
        rows = buffer[: math.prod(shape)].view(shape)
        start = 0
        for group, size in enumerate(sizes):
            self._fill(rows[:, start : start + size], call, plan, group, layers, hidden)
            start += size
        rows[:, start:].zero_()  # the row of examples without an adapter, if there are any
        positions = plan.placement.positions.to(hidden.device)
        return {block: (rows[slot], positions) for slot, block in enumerate(layers.blocks)}

    def _fill(self, part: Tensor, call: StackCall, plan: Plan, group: int, layers: StackRows, hidden: Tensor) -> None:
        """Write the rows of one group, for all blocks of a stack, into `part` (L, U, D)."""
        names, tokens, embeddings = plan.groups[group], plan.placement.tokens[group], plan.embeddings[group]
        table = self._usable_table(call, names[0]) if len(names) == 1 else None
        slots = None if table is None else table.layer_slots(layers.blocks)
        if len(names) != 1 or (table is not None and slots is None):
            for slot, (block, modules) in enumerate(zip(layers.blocks, layers.modules, strict=True)):
                part[slot].copy_(self._group_rows(call, plan, group, block, modules, hidden))
        elif table is None or (read := self._read(names[0], table, tokens)) is None:
            layers.read(part, names[0], tokens, embeddings)
        else:
            part.copy_(read[:, slots].transpose(0, 1))
            missing = table.missing(tokens)
            if missing is not None and bool(missing.any()):
                places = missing.nonzero().flatten()
                where = places.to(tokens.device)
                rest = part.new_empty(part.shape[0], len(places), part.shape[2])
                layers.read(rest, names[0], tokens[where], embeddings[where])
                part[:, places.to(part.device)] = rest

    def _group_rows(
        self, call: StackCall, plan: Plan, group: int, block: str, rows: nn.ModuleDict, hidden: Tensor
    ) -> Tensor:
        tokens, embeddings = plan.placement.tokens[group], plan.embeddings[group]
        total: Tensor | None = None
        for name in plan.groups[group]:
            if name not in rows or isinstance(rows[name], HiddenBottleneck):  # this adapter has no rows for this block
                continue
            part = self._adapter_rows(call, (plan.groups, group), name, block, rows[name], tokens, embeddings)
            total = part if total is None else total + part.to(total.device)
        return hidden.new_zeros(len(tokens), hidden.shape[-1]) if total is None else total

    def _adapter_rows(
        self,
        call: StackCall,
        key: object,
        name: str,
        block: str,
        module: nn.Module,
        tokens: Tensor,
        embeddings: Tensor,
    ) -> Tensor:
        table = self._usable_table(call, name)
        slot = None if table is None else table.layer_slot(block)
        read = None if table is None or slot is None else call.memo.get((key, name))
        if read is None and table is not None and slot is not None:
            # all layers of a token at once, on the first layer that asks
            read = call.memo[(key, name)] = self._read(name, table, tokens)
        if read is None or table is None:
            computed: Tensor = module(tokens, embeddings)
            return computed
        values: Tensor = read[:, slot]
        missing = table.missing(tokens)
        if missing is not None and bool(missing.any()):
            values = values.clone()
            where = missing.to(tokens.device)
            values[missing] = module(tokens[where], embeddings[where]).to(values)
        return values

    def _read(self, name: str, table: Table, tokens: Tensor) -> Tensor | None:
        """Return rows (U, L, D) of an adapter's table, or let go of it and return None if its file was written to."""
        try:
            return table.rows(tokens)
        except TableChanged as error:
            if self.tables.get(name) is table:  # the first to notice says so
                self.detach(name)
                warnings.warn(f"{error}. Until then the factors are used.", stacklevel=2)
            return None

    def _usable_table(self, call: StackCall, name: str) -> Table | None:
        key = ("table", name)
        if key not in call.memo:
            call.memo[key] = self._table_if_right(name)
        table: Table | None = call.memo[key]
        return table

    def _table_if_right(self, name: str) -> Table | None:
        table = self.tables.get(name)
        if table is None:
            return None
        compiling = torch.compiler.is_compiling()
        if (torch.is_grad_enabled() or compiling) and self._train([name]):
            return None
        if compiling:
            return table
        if self._unchanged(name):
            return table
        self.detach(name)
        warnings.warn(
            f"the factors of adapter '{name}' have changed since its fused table was loaded; the factors are used, "
            f"save the adapter to fuse them again",
            stacklevel=2,
        )
        return None

    def _unchanged(self, name: str) -> bool:
        found = self.factor_versions(name)
        return self._versions.setdefault(name, found) == found

    def factor_versions(self, name: str) -> tuple[int, ...]:
        """Return a fingerprint of an adapter's factors that changes with every change but those through `.data`."""
        return versions(factors_of(self.modules_of(name)))

    def _train(self, names: Iterable[str]) -> bool:
        """Whether a gradient may be wanted of a factor of one of these adapters."""
        return any(p.requires_grad for name in names for p in factors_of(self.modules_of(name)))

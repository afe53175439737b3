"""Rows for one call: distinct tokens once per stack, tables where there are any, factors elsewhere.

Every block's layer asks the `Lookup` that its tuner's layers share. It knows adapters' tables and which tokens a call
runs on; how rows are computed or stored is the business of `reparam` and `tables`.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from peft_aot.backbone import input_embedding
from peft_aot.ops import Placement, add_rows, place_distinct, place_every
from peft_aot.routing import BASE, tasks_of
from peft_aot.tables import Table

from .token_ids import StackCall, current_call


@dataclass(frozen=True)
class Plan:
    """What a call needs, resolved once and shared by its layers.

    Attributes:
        groups: For each group of examples the adapters whose rows add up.
        placement: Which rows, and where they go.
        embeddings: For each group (U_g, E), the backbone's own.
    """

    groups: tuple[tuple[str, ...], ...]
    placement: Placement
    embeddings: tuple[Tensor, ...]


class Lookup:
    """What the AoT layers of one tuner share: tables, and one plan per stack call.

    Args:
        tuner: The tuner that owns the layers; identifies the calls that concern them.

    Attributes:
        tables: Fused tables by adapter name.
        rows: Of every layer, its modules by adapter name.
        vocab_sizes: V by adapter name.
    """

    def __init__(self, tuner: BaseTuner) -> None:
        self.tuner = tuner
        self.tables: dict[str, Table] = {}
        self.rows: list[nn.ModuleDict] = []
        self.vocab_sizes: dict[str, int] = {}
        self._versions: dict[str, tuple[int, ...]] = {}

    def __getstate__(self) -> dict[str, Any]:
        # copied tensors count their versions anew, so that a copy keeps only tables that are fresh now
        fresh = {name: table for name, table in self.tables.items() if self._unchanged(name)}
        return {**self.__dict__, "tables": fresh, "_versions": {}}

    def modules_of(self, adapter_name: str) -> list[nn.Module]:
        """Return the adapter's modules, one per wrapped block in the order of wrapping."""
        return [rows[adapter_name] for rows in self.rows if adapter_name in rows]

    def attach(self, adapter_name: str, table: Table) -> None:
        """Use `table` for an adapter in inference, until its factors change."""
        self.tables[adapter_name] = table
        self._versions[adapter_name] = self.factor_versions(adapter_name)

    def fresh_table(self, adapter_name: str) -> Table | None:
        """Return an adapter's table if it has one, and its factors have not changed since."""
        table = self.tables.get(adapter_name)
        return table if table is not None and self._unchanged(adapter_name) else None

    def detach(self, adapter_name: str) -> None:
        """Forget an adapter's table, if it has one."""
        self.tables.pop(adapter_name, None)
        self._versions.pop(adapter_name, None)

    def add(self, block: str, hidden: Tensor, rows: Mapping[str, nn.Module], active: Sequence[str]) -> Tensor:
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
        parts = [self._group_rows(call, plan, g, block, rows, hidden) for g in range(len(plan.groups))]
        return add_rows(hidden, parts, plan.placement)

    def _plan(self, call: StackCall, hidden: Tensor, active: tuple[str, ...]) -> Plan:
        plan: Plan | None = call.memo.get(active)
        if plan is None:
            plan = call.memo[active] = self._make_plan(call, hidden, active)
        return plan

    def _make_plan(self, call: StackCall, hidden: Tensor, active: tuple[str, ...]) -> Plan:
        ids = self._checked_ids(call, hidden)
        tasks = tasks_of(self.tuner)
        if tasks is not None and call.examples not in (None, ids.shape[0]):
            raise ValueError(
                f"expected a stack that embeds {call.examples} examples as {call.examples} rows, got {ids.shape[0]} in "
                f"{type(call.stack).__name__}, which reorders its input; run its adapters one at a time"
            )
        if tasks is None:
            groups: tuple[tuple[str, ...], ...] = (active,)
            group_of = [0] * ids.shape[0]
        else:
            names = tasks.expand(ids.shape[0])
            order = {name: g for g, name in enumerate(dict.fromkeys(n for n in names if n != BASE))}
            groups = tuple((name,) for name in order)
            group_of = [order.get(name, -1) for name in names]
        place = place_every if torch.compiler.is_compiling() else place_distinct
        placement = place(ids, group_of, len(groups))
        embedding = input_embedding(call.stack)
        if embedding is None:
            raise RuntimeError(f"expected {type(call.stack).__name__} to embed token ids, got no input embedding")
        if not torch.compiler.is_compiling():
            sizes = [self.vocab_sizes[name] for group in groups for name in group]
            _check_range(placement, min([embedding.num_embeddings, *sizes]))
        # `forward`, not a call: hooks on the embedding would take this look-up for the model's own
        embeddings = tuple(embedding.forward(tokens.to(ids.device)).detach() for tokens in placement.tokens)
        return Plan(groups, placement, embeddings)

    def _checked_ids(self, call: StackCall, hidden: Tensor) -> Tensor:
        ids = call.token_ids
        if ids is None:
            raise ValueError(
                "expected token ids, got inputs_embeds that the model's own embedding layer did not just produce; "
                "pass input_ids, or state the ids with `with peft_aot.token_ids(ids):`"
            )
        if ids.shape != hidden.shape[:-1]:
            raise ValueError(
                f"expected hidden states of shape {(*ids.shape, hidden.shape[-1])} for token ids of shape "
                f"{tuple(ids.shape)}, got {tuple(hidden.shape)}; use an attention implementation that does not unpad "
                f"or reorder the batch, such as attn_implementation='sdpa', or another architecture"
            )
        return ids

    def _group_rows(
        self, call: StackCall, plan: Plan, group: int, block: str, rows: Mapping[str, nn.Module], hidden: Tensor
    ) -> Tensor:
        tokens, embeddings = plan.placement.tokens[group], plan.embeddings[group]
        total: Tensor | None = None
        for name in plan.groups[group]:
            if name not in rows:  # this adapter leaves this block alone
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
        if table is None or slot is None:
            computed: Tensor = module(tokens, embeddings)
            return computed
        read = call.memo.get((key, name))
        if read is None:  # all layers of a token at once, on the first layer that asks
            read = call.memo[(key, name)] = table.rows(tokens)
        values: Tensor = read[:, slot]
        missing = table.missing(tokens)
        if missing is not None and bool(missing.any()):
            values = values.clone()
            where = missing.to(tokens.device)
            values[missing] = module(tokens[where], embeddings[where]).to(values)
        return values

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
        factors = [p for m in self.modules_of(name) for p in m.parameters()]
        compiling = torch.compiler.is_compiling()
        if (torch.is_grad_enabled() or compiling) and any(p.requires_grad for p in factors):
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
        return self._versions.setdefault(name, self.factor_versions(name)) == self.factor_versions(name)

    def factor_versions(self, name: str) -> tuple[int, ...]:
        """Return a fingerprint of an adapter's factors that changes with every change but those through `.data`."""
        factors = (p for m in self.modules_of(name) for p in m.parameters())
        # tensors made under inference_mode count no versions
        return tuple(n for p in factors for n in (id(p), -1 if p.is_inference() else p._version))


def _check_range(placement: Placement, vocab_size: int) -> None:
    for tokens in placement.tokens:
        if tokens.numel() and (int(tokens[0]) < 0 or int(tokens[-1]) >= vocab_size):  # distinct tokens ascend
            raise IndexError(
                f"expected token ids in [0, {vocab_size}), the vocabulary of the table, got ids from {int(tokens[0])} "
                f"to {int(tokens[-1])}; use the tokenizer of the backbone the adapter was trained with, or resize the "
                f"embeddings before get_peft_model"
            )

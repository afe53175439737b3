"""One task's rows before the blocks of one stack, wherever they come from: its table, the cache, or its factors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from peft_aot.tables import Table

from .stack_rows import StackRows
from .stacked import StackedFactors


@dataclass(frozen=True)
class TaskRows:
    """Where the rows of one task come from.

    Attributes:
        layers: The stack.
        table: The task's table, if it has one that may be used.
        factors: Gives its factors, which are only asked for when they are needed.
    """

    layers: StackRows
    table: Table | None
    factors: Callable[[], StackedFactors]

    def read(self, rows: Tensor, tokens: Tensor, embeddings: Tensor, blocks: slice) -> None:
        """Write rows.

        Args:
            rows: (L, U, D) for the L blocks of the stack that are asked for, written to.
            tokens: (U,) int64, distinct.
            embeddings: (U, E), theirs.
            blocks: Which blocks.
        """
        if self.table is None:
            self.layers.read(rows, self.factors(), tokens, embeddings, blocks)
            return
        _copy(rows, self.table, tokens, self.layers.blocks[blocks])
        missing = self.table.missing(tokens)
        if missing is not None and bool(missing.any()):
            places = missing.nonzero().flatten()
            where = places.to(tokens.device)
            rest = rows.new_empty(rows.shape[0], len(places), rows.shape[2])
            self.layers.read(rest, self.factors(), tokens[where], embeddings[where], blocks)
            rows[:, places.to(rows.device)] = rest


def _copy(rows: Tensor, table: Table, tokens: Tensor, names: tuple[str, ...]) -> None:
    slots = table.layer_slots(names)
    if slots is not None:
        rows.copy_(table.rows(tokens, slots).transpose(0, 1))
        return
    read = table.rows(tokens)
    for row, name in zip(rows, names, strict=True):
        slot = table.layer_slot(name)
        if slot is None:  # a block to which this task adds nothing
            row.zero_()
        else:
            row.copy_(read[:, slot])

"""One task's rows before the blocks of one stack, wherever they come from: its table, the cache, or its factors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

from peft_aot.tables import Table, TableChanged

from .arena import ArenaRows, Resident, Residents
from .plan import Asked
from .stack_rows import StackRows
from .stacked import StackedFactors


@dataclass(frozen=True)
class TaskRows:
    """Where the rows of one task come from.

    Attributes:
        layers: The stack.
        table: The task's table, if it has one that may be used.
        factors: Gives its factors, which are only asked for when they are needed.
        let_go: Called when its table can be used no longer.
    """

    layers: StackRows
    table: Table | None
    factors: Callable[[], StackedFactors]
    let_go: Callable[[Table, TableChanged], None]

    def copy(self, rows: Tensor, tokens: Tensor, blocks: slice) -> Sequence[int]:
        """Write the rows that the task's table has.

        Args:
            rows: (L, U, D) for the L blocks of the stack that are asked for, written to.
            tokens: (U,) int64, distinct.
            blocks: Which blocks.

        Returns:
            Places in `tokens` of those that are left to its factors.
        """
        if self.table is None:
            return range(len(tokens))
        try:
            _copy(rows, self.table, tokens, self.layers.blocks[blocks])
        except TableChanged as error:
            self.let_go(self.table, error)
            return range(len(tokens))
        missing = self.table.missing(tokens)
        return [] if missing is None else missing.nonzero().flatten().tolist()

    def place(self, residents: Residents, hidden: Tensor) -> Resident | None:
        """Return the place of the task's table among those in memory, or None if it has none there."""
        if self.table is not None:
            try:
                return residents.place(self.table, self.layers, hidden.dtype, hidden.device)
            except TableChanged as error:
                self.let_go(self.table, error)
        return None


def rows_in_memory(
    asked: Asked, sources: Sequence[Sequence[TaskRows]], layers: StackRows, hidden: Tensor, residents: Residents
) -> ArenaRows | None:
    """Return the rows of a call if the tables of all its tasks are in one arena, or can be put there."""
    places: list[Resident] = []
    for group in sources:
        place = group[0].place(residents, hidden) if len(group) == 1 else None
        if place is None or (places and place.arena is not places[0].arena):
            return None
        places.append(place)
    return ArenaRows(asked, places, layers, places[0].arena) if places else None


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

"""One task as a bank keeps it: what a saved adapter holds, laid out for inference."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from torch import nn

from peft_aot.tables import Table

from .stack_rows import StackRows
from .stacked import StackedFactors


@dataclass(frozen=True, eq=False)
class BankedTask:
    """A task, ready to answer; never changed once made, so that a batch that has it may go on while it is replaced.

    Attributes:
        vocab_size: V of the backbone it was trained on.
        heads: Its own heads, by their names in the model.
        factors: Its factors in each stack.
        table: Its table, if it has one.
    """

    vocab_size: int
    heads: Mapping[str, nn.Module]
    factors: Mapping[nn.Module, StackedFactors]
    table: Table | None

    @property
    def nbytes(self) -> int:
        """Bytes in memory: factors and heads."""
        tensors = [tensor for head in self.heads.values() for tensor in (*head.parameters(), *head.buffers())]
        return sum(tensor.nbytes for tensor in tensors) + sum(factors.nbytes for factors in self.factors.values())

    def factors_for(self, layers: StackRows) -> StackedFactors:
        """Return its factors in one stack."""
        return self.factors.get(layers.stack) or StackedFactors([])  # a stack none of whose blocks it knew


def drop_table(name: str, table: Table, tasks: dict[str, BankedTask]) -> bool:
    """Take a table from a task of a bank, if it still has it."""
    there = name in tasks and tasks[name].table is table
    if there:
        tasks[name] = replace(tasks[name], table=None)
    return there

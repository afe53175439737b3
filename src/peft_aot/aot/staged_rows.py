"""The rows that one call needs, gathered before they are added: all blocks of its stack at once, if memory allows."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence

import torch
from torch import Tensor

from peft_aot.ops import add_staged
from peft_aot.sizes import format_bytes

from .plan import Plan
from .source_rows import TaskRows
from .stack_rows import StackRows
from .stage import Buffers

STAGE_BYTES = 256 * 2**20
"""Most memory for the rows of one call; of a batch that needs more, as many blocks as fit are gathered at a time."""


class StagedRows:
    """The rows of one call of one stack.

    Args:
        plan: Which rows.
        sources: For each group of examples of the plan, where its rows come from; several add up.
        layers: The stack.
        hidden: (B, T, D), whose format and device the rows get.
        buffers: Where the memory comes from; `give_back` returns it.
    """

    def __init__(
        self, plan: Plan, sources: Sequence[Sequence[TaskRows]], layers: StackRows, hidden: Tensor, buffers: Buffers
    ) -> None:
        self._plan, self._sources, self._layers, self._buffers = plan, sources, layers, buffers
        self._sizes = [len(tokens) for tokens in plan.placement.tokens]
        self._shape = (sum(self._sizes) + plan.placement.zero_row, hidden.shape[-1])
        self._positions = plan.placement.positions.to(hidden.device)
        block = self._shape[0] * self._shape[1]
        fit = STAGE_BYTES // max(1, block * hidden.element_size())
        self._at_once, self._buffer = self._borrow(max(1, min(len(layers.blocks), fit)), block, hidden)
        self._blocks = slice(0, 0)

    def add(self, block: str, hidden: Tensor) -> Tensor:
        """Return hidden states (B, T, D) plus the rows of their tokens before a block."""
        slot = self._layers.slots[block]
        if not self._blocks.start <= slot < self._blocks.stop:
            self._gather(slot)
        return add_staged(hidden, self._rows[slot - self._blocks.start], self._positions)

    def give_back(self) -> None:
        """Let later calls use the memory."""
        self._buffers.give_back(self._buffer)

    def _borrow(self, blocks: int, block: int, hidden: Tensor) -> tuple[int, Tensor]:
        while True:
            try:
                return blocks, self._buffers.borrow(blocks * block, hidden.dtype, hidden.device)
            except RuntimeError as error:  # torch's way to say that there is no memory, on the CPU too
                if blocks == 1:
                    raise
                needed = format_bytes(blocks * block * hidden.element_size())
                warnings.warn(
                    f"expected {needed} of free memory for the rows of a batch, got '{str(error).splitlines()[0]}'; "
                    f"fewer blocks' rows are gathered at a time, which is slower: use smaller batches",
                    stacklevel=2,
                )
                blocks = blocks // 2

    def _gather(self, first: int) -> None:
        self._blocks = slice(first, min(first + self._at_once, len(self._layers.blocks)))
        count = self._blocks.stop - first
        self._rows = self._buffer[: count * self._shape[0] * self._shape[1]].view(count, *self._shape)
        start = 0
        for group, size in enumerate(self._sizes):
            self._fill(self._rows[:, start : start + size], group)
            start += size
        self._rows[:, start:].zero_()  # the row of examples without an adapter, if there are any

    def _fill(self, part: Tensor, group: int) -> None:
        tokens = self._plan.placement.tokens[group]
        embeddings = functools.partial(self._plan.embeddings, group)
        sources = self._sources[group]
        if not sources:
            part.zero_()
        for number, source in enumerate(sources):
            rows = part if number == 0 else torch.empty_like(part)
            source.read(rows, tokens, embeddings, self._blocks)
            if number:
                part += rows

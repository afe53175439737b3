"""The rows that one call needs, gathered before they are added: all blocks of its stack at once, if memory allows."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from peft_aot.ops import add_staged
from peft_aot.sizes import format_bytes

from .plan import Plan
from .source_rows import TaskRows
from .stack_rows import StackRows, Wanted, precision
from .stage import Buffers, Lent
from .transfer import Streams, Transfer

CPU = torch.device("cpu")
STAGE_BYTES = 256 * 2**20
"""Most memory for the rows of one call; of a batch that needs more, as many blocks as fit are gathered at a time."""


class StagedRows:
    """The rows of one call of one stack.

    Args:
        plan: Which rows.
        sources: For each group of examples of the plan, where its rows come from; several add up.
        layers: The stack.
        like: (..., D), whose format and device the rows get.
        buffers: Where the memory comes from; `give_back` returns it.
        streams: If given, rows of tables are gathered in pinned memory and copied beside the computation.
    """

    def __init__(
        self,
        plan: Plan,
        sources: Sequence[Sequence[TaskRows]],
        layers: StackRows,
        like: Tensor,
        buffers: Buffers,
        streams: Streams | None = None,
    ) -> None:
        self.plan, self._sources, self._layers, self._buffers = plan, sources, layers, buffers
        self._streams = streams
        self._transfer: Transfer | None = None
        self.dtype, self.device = like.dtype, like.device
        self._precision = precision(like.device.type)
        ends = list(itertools.accumulate((len(tokens) for tokens in plan.placement.tokens), initial=0))
        self._columns = [slice(start, stop) for start, stop in itertools.pairwise(ends)]
        self._shape = (ends[-1] + plan.placement.zero_row, like.shape[-1])
        self._positions = plan.placement.positions.to(like.device)
        fit = STAGE_BYTES // max(1, self._elements(1) * like.element_size())
        self._at_once, self._lent = self._borrow(max(1, min(len(layers.blocks), fit)))
        self._blocks = slice(0, 0)

    def add(self, block: str, hidden: Tensor) -> Tensor:
        """Return hidden states (B, T, D) plus the rows of their tokens before a block."""
        slot = self._layers.slots[block]
        if not self._blocks.start <= slot < self._blocks.stop:
            self.gather(slot)
        if self._transfer is not None:
            self._transfer.wait(slot - self._blocks.start)
        return add_staged(hidden, self._rows[slot - self._blocks.start], self._positions)

    def fits(self, hidden: Tensor) -> bool:
        """Whether the rows are what a call on these hidden states would gather."""
        same = (self.dtype, self.device) == (hidden.dtype, hidden.device)
        return same and self._precision == precision(hidden.device.type)

    def give_back(self) -> None:
        """Let later calls use the memory, once what is computed now is done."""
        if self._streams is not None and self._transfer is not None:
            self._streams.wait(self._transfer.last)  # a call that failed midway has not waited for all
        self._buffers.give_back(self._lent.tensor, None if self._streams is None else self._streams.computed())

    def gather(self, first: int = 0) -> None:
        """Gather the rows of as many blocks as fit, from one on."""
        self._blocks = slice(first, min(first + self._at_once, len(self._layers.blocks)))
        count = self._blocks.stop - first
        rows = self._lent.tensor[: self._elements(count)].view(count, *self._shape)
        tables = [self._streams is not None and all(s.table is not None for s in sources) for sources in self._sources]
        if self._streams is not None and any(tables):
            self._copy(rows, tables, self._streams)
        self._fill(rows, [group for group, copied in enumerate(tables) if not copied])
        if self.plan.placement.zero_row:
            rows[:, -1:].zero_()  # the row of examples without an adapter
        self._rows = rows.unbind(0)

    def _elements(self, blocks: int) -> int:
        return blocks * self._shape[0] * self._shape[1]

    def _copy(self, rows: Tensor, tables: Sequence[bool], streams: Streams) -> None:
        """Gather the rows of tables on the CPU and begin to copy them; wait where others have to go beside them."""
        # memory that is new here may still be read by what was queued before it was freed
        after = self._lent.after if not self._blocks.start and self._lent.after else streams.computed()
        pinned = self._buffers.borrow(rows.numel(), rows.dtype, CPU, rows.device.type != "cpu")
        if pinned.after is not None:
            pinned.after.synchronize()
        host = pinned.tensor[: rows.numel()].view(rows.shape)
        self._fill(host, [group for group, copied in enumerate(tables) if copied])
        self._transfer = Transfer(streams, host, rows, after)
        self._buffers.give_back(pinned.tensor, self._transfer.last, rows.device.type != "cpu")
        if not all(tables) or self.plan.placement.zero_row:
            streams.wait(self._transfer.last)

    def _fill(self, rows: Tensor, groups: Sequence[int]) -> None:
        """Write the rows of some groups; where tasks add up, the first task of every group before the second."""
        for number in range(max((len(self._sources[group]) for group in groups), default=0)):
            own = [group for group in groups if number < len(self._sources[group])]
            part = rows if number == 0 else torch.zeros_like(rows)
            self._read(part, {group: self._sources[group][number] for group in own})
            if number:
                rows += part
        for group in groups:
            if not self._sources[group]:
                rows[:, self._columns[group]].zero_()

    def _read(self, rows: Tensor, sources: Mapping[int, TaskRows]) -> None:
        wanted = []
        for group, source in sources.items():
            tokens, columns = self.plan.placement.tokens[group], self._columns[group]
            left = source.copy(rows[:, columns], tokens, self._blocks)
            if isinstance(left, range):
                wanted.append(Wanted(source.factors(), tokens, range(columns.start, columns.stop)))
            elif left:
                wanted.append(Wanted(source.factors(), tokens[left], [columns.start + place for place in left]))
        self._layers.read(rows, wanted, self.plan.embed, self._blocks)

    def _borrow(self, blocks: int) -> tuple[int, Lent]:
        while True:
            try:
                return blocks, self._buffers.borrow(self._elements(blocks), self.dtype, self.device)
            except RuntimeError as error:  # torch's way to say that there is no memory, on the CPU too
                if blocks == 1:
                    raise
                needed = format_bytes(self._elements(blocks) * self.dtype.itemsize)
                warnings.warn(
                    f"expected {needed} of free memory for the rows of a batch, got '{str(error).splitlines()[0]}'; "
                    f"fewer blocks' rows are gathered at a time, which is slower: use smaller batches",
                    stacklevel=2,
                )
                blocks = blocks // 2

"""Whole tables of many tasks in one tensor: a batch of any of them is one look-up per block, and nothing else.

Row 0 is zero, for examples without a task. Tables are copied in when a batch first asks for them, in the format of the
hidden states (int8 tables as they are), until a budget is used up. Nothing is ever moved under a running batch: an
arena that has to grow becomes another tensor, while the batch keeps the one it began with, and the place of a table
that nobody uses any more is given to another only when the last batch that reads it has ended.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from peft_aot.ops import add_quantized, add_staged
from peft_aot.sizes import format_bytes
from peft_aot.tables import Table

from .placement import AUTO_SHARE, free_memory
from .plan import Asked
from .stack_rows import StackRows

GROWTH = 1.5
CHUNK = 4096


class Resident:
    """A table's place in an arena; the place is free again when nobody has this any more.

    Attributes:
        arena: The arena.
        start: The row of token 0.
    """

    def __init__(self, arena: Arena, start: int, size: int) -> None:
        self.arena = arena
        self.start = start
        weakref.finalize(self, arena.given_back.append, (start, size))


class Arena:
    """Tables of one stack in one number format.

    Args:
        layers: The stack.
        dtype: Number format of the rows; int8 for tables that are stored so.
        device: Where the rows are.

    Attributes:
        rows: (L, S, D).
        scales: (L, S, 1) of int8 rows.
        given_back: (start, size) of places that are free again.
    """

    def __init__(self, layers: StackRows, dtype: torch.dtype, device: torch.device) -> None:
        self._layers = layers
        with torch.inference_mode(False):  # else nothing could be written to it outside inference mode
            self.rows = torch.zeros(len(layers.blocks), 1, layers.width, dtype=dtype, device=device)
            self.scales = torch.zeros(len(layers.blocks), 1, 1, dtype=torch.float16, device=device)
        self.given_back: deque[tuple[int, int]] = deque()  # filled by finalizers, which may run at any moment
        self._free: list[tuple[int, int]] = []

    @property
    def quantized(self) -> bool:
        """Whether rows are int8."""
        return self.rows.dtype == torch.int8

    @property
    def nbytes(self) -> int:
        """Bytes of the rows and, if there are any, scales."""
        return self.rows.nbytes + (self.scales.nbytes if self.quantized else 0)

    def copy_in(self, table: Table, limit: int) -> Resident | None:
        """Copy a table in, or return None if the arena would then take more than `limit` bytes."""
        size = table.header.vocab_size
        start = self._take(size, limit)
        if start is None:
            return None
        resident = Resident(self, start, size)  # first, so that the place is given back whatever happens
        slots = [table.layer_slot(name) for name in self._layers.blocks]
        for first in range(0, size, CHUNK):
            tokens = torch.arange(first, min(first + CHUNK, size))
            place = slice(start + first, start + first + len(tokens))
            values, scales = table.stored(tokens)
            for block, slot in enumerate(slots):
                if slot is None:  # a block to which the task adds nothing
                    self.rows[block, place] = 0
                    if scales is not None:
                        self.scales[block, place] = 0
                else:
                    self.rows[block, place] = values[:, slot].to(self.rows.device, self.rows.dtype)
                    if scales is not None:
                        self.scales[block, place, 0] = scales[:, slot].to(self.scales.device)
        return resident

    def _take(self, size: int, limit: int) -> int | None:
        while self.given_back:
            self._free.append(self.given_back.popleft())
        self._free = _merged(self._free)
        found = next(((start, free) for start, free in self._free if free >= size), None)
        if found is None:
            found = self._grow(size, limit)
            if found is None:
                return None
        start, free = found
        self._free.remove(found)
        if free > size:
            self._free.append((start + size, free - size))
        return start

    def _grow(self, size: int, limit: int) -> tuple[int, int] | None:
        blocks, present, width = self.rows.shape
        size -= next((free for start, free in self._free if start + free == present), 0)  # what is free at the end
        row = blocks * (width * self.rows.element_size() + (2 if self.quantized else 0))
        most = limit // row
        if present + size > most:
            return None
        wanted = max(present + size, min(most, int(present * GROWTH)))
        with torch.inference_mode(False):
            rows = torch.empty(blocks, wanted, width, dtype=self.rows.dtype, device=self.rows.device)
            rows[:, :present] = self.rows
            if self.quantized:
                scales = torch.empty(blocks, wanted, 1, dtype=self.scales.dtype, device=self.scales.device)
                scales[:, :present] = self.scales
                self.scales = scales
        self.rows = rows
        self._free = _merged([*self._free, (present, wanted - present)])
        return next((start, free) for start, free in self._free if start + free == wanted)


def _merged(free: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return places in order, neighbours as one."""
    found: list[tuple[int, int]] = []
    for start, size in sorted(free):
        if found and sum(found[-1]) == start:
            found[-1] = (found[-1][0], found[-1][1] + size)
        else:
            found.append((start, size))
    return found


class Key(NamedTuple):
    """What tables in one arena have in common.

    Attributes:
        stack: Identity of the stack.
        blocks: How many of its blocks are wrapped.
        dtype: Number format of the rows.
        device: Where they are.
    """

    stack: int
    blocks: int
    dtype: torch.dtype
    device: torch.device


class Residents:
    """The tables that are in arenas, under one budget; safe to use from several threads.

    Args:
        budget: Bytes for all arenas together; None is a quarter of what is free when the first table comes.
    """

    def __init__(self, budget: int | None) -> None:
        self.budget = budget
        self._lock = threading.Lock()
        self._warned = False
        self._arenas: dict[Key, Arena] = {}
        self._places: weakref.WeakKeyDictionary[Table, dict[Arena, Resident]] = weakref.WeakKeyDictionary()

    def __reduce__(self) -> tuple[type[Residents], tuple[int | None]]:
        return Residents, (self.budget,)  # a copy of a model has arenas of its own

    @property
    def nbytes(self) -> int:
        """Bytes of all arenas."""
        return sum(arena.nbytes for arena in self._arenas.values())

    def place(self, table: Table, layers: StackRows, dtype: torch.dtype, device: torch.device) -> Resident | None:
        """Return a table's place, copying it in if it is not there; None if it keeps few tokens or finds no room.

        Raises:
            TableChanged: Its file was written to since it was mapped.
        """
        if not table.header.complete:
            return None
        key = Key(id(layers), len(layers.blocks), torch.int8 if table.header.dtype == "int8" else dtype, device)
        arena = self._arenas.get(key)
        places = self._places.get(table)
        if arena is not None and places is not None and arena in places:
            return places[arena]
        with self._lock:
            if self.budget is None:
                self.budget = free_memory(device) // AUTO_SHARE
            arena = self._arenas.get(key) or self._arenas.setdefault(key, Arena(layers, key.dtype, device))
            places = self._places.setdefault(table, {})
            if arena not in places:
                resident = self._copied(arena, table)
                if resident is None and self._drop_others(key):
                    resident = self._copied(arena, table)
                if resident is None:
                    return None
                places[arena] = resident
            return places[arena]

    def _drop_others(self, key: Key) -> bool:
        """Let go of what a stack had in another format, on another device or for fewer blocks; say if there was any."""
        old = [k for k in self._arenas if k.stack == key.stack and k != key and torch.int8 not in (k.dtype, key.dtype)]
        old += [k for k in self._arenas if k.stack == key.stack and k.blocks != key.blocks and k not in old]
        for k in old:
            arena = self._arenas.pop(k)
            for places in list(self._places.values()):
                places.pop(arena, None)
        return bool(old)

    def _copied(self, arena: Arena, table: Table) -> Resident | None:
        limit = (self.budget or 0) - (self.nbytes - arena.nbytes)
        try:
            return arena.copy_in(table, limit)
        except RuntimeError as error:  # torch's way to say that there is no memory, on the CPU too
            if not self._warned:
                self._warned = True
                warnings.warn(
                    f"expected memory for a table of {format_bytes(table.header.file_bytes)}, got "
                    f"'{str(error).splitlines()[0]}'; it is read from its file: give set_table_placement() a smaller "
                    f"memory_budget",
                    stacklevel=2,
                )
            return None


class ArenaRows:
    """The rows of one call, all of which are in one arena.

    Args:
        asked: What the call asks for.
        residents: The place of each group's table, all in one arena.
        layers: The stack.
        arena: That arena.
    """

    def __init__(self, asked: Asked, residents: Sequence[Resident], layers: StackRows, arena: Arena) -> None:
        self._layers = layers
        self._residents = residents  # whose places are not given away meanwhile
        self._rows, self._scales = arena.rows.unbind(0), arena.scales if arena.quantized else None
        ids = asked.ids.to(arena.rows.device)
        if len(residents) == 1 and -1 not in asked.group_of:
            self._positions = ids + residents[0].start
        else:
            starts = [residents[group].start if group >= 0 else -1 for group in asked.group_of]
            start = torch.tensor(starts, device=ids.device).unsqueeze(1)
            self._positions = (ids + start).mul_(start >= 0)  # row 0 is zero

    def add(self, block: str, hidden: Tensor) -> Tensor:
        """Return hidden states (B, T, D) plus the rows of their tokens before a block."""
        slot = self._layers.slots[block]
        if self._scales is None:
            return add_staged(hidden, self._rows[slot], self._positions)
        return add_quantized(hidden, self._rows[slot], self._scales[slot], self._positions)

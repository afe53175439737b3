"""Memory for the rows of one call: borrowed by the call, given back at its end.

Filling such memory is cheap, allocating it anew for every batch is not: the system hands out fresh pages one by one,
and memory that an accelerator can read by itself (pinned) takes longer still.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

AT_ONCE = 2
"""Buffers of one kind that are made before a call waits for another to end: one computes, one is being filled."""


class Event(Protocol):
    """A point in the work of an accelerator, as `torch.cuda.Event`."""

    def query(self) -> bool:
        """Whether all work before it is done."""

    def synchronize(self) -> None:
        """Wait until it is."""


class Kind(NamedTuple):
    """What buffers can take each other's place.

    Attributes:
        dtype: Number format.
        device: Where it is.
        pinned: Whether an accelerator can read it by itself.
        stream: Work of one stream on an accelerator ends in order, that of several does not.
    """

    dtype: torch.dtype
    device: torch.device
    pinned: bool
    stream: int


class Lent(NamedTuple):
    """A buffer.

    Attributes:
        tensor: One dimension, whose values mean nothing.
        after: What must have happened before it is written to, if anything.
    """

    tensor: Tensor
    after: Event | None


class Buffers:
    """Tensors that calls borrow, as many as there were calls at one time; safe to use from several threads.

    A buffer stays as large as the largest batch has made it.
    """

    def __init__(self) -> None:
        self._free: dict[Kind, deque[Lent]] = {}

    def __reduce__(self) -> tuple[type[Buffers], tuple[()]]:
        return Buffers, ()  # a copy of a model borrows from buffers of its own

    def borrow(self, elements: int, dtype: torch.dtype, device: torch.device, pinned: bool = False) -> Lent:
        """Return a buffer of at least `elements` elements."""
        free = self._free.setdefault(_kind(dtype, device, pinned), deque())
        try:
            lent = free.popleft()  # given back first, and so most likely done
        except IndexError:
            lent = None
        if lent is not None and lent.after is not None and not lent.after.query() and len(free) + 1 < AT_ONCE:
            free.append(lent)
            lent = None
        if lent is not None and lent.tensor.numel() >= elements:
            return lent
        with torch.inference_mode(False):  # else it could not be written to outside inference mode
            return Lent(torch.empty(elements, dtype=dtype, device=device, pin_memory=pinned), None)

    def give_back(self, tensor: Tensor, after: Event | None = None, pinned: bool = False) -> None:
        """Let later calls have a buffer, once `after` has happened."""
        self._free.setdefault(_kind(tensor.dtype, tensor.device, pinned), deque()).append(Lent(tensor, after))


def _kind(dtype: torch.dtype, device: torch.device, pinned: bool) -> Kind:
    stream = torch.cuda.current_stream(device).stream_id if device.type == "cuda" else 0
    return Kind(dtype, device, pinned, stream)

"""Copying rows to an accelerator beside the computation: on a stream of their own, a few blocks at a time.

A block waits for the copy of its own blocks' rows only, so that the first blocks compute while the rows of later ones
are on their way.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from .stage import Event

BLOCKS_AT_ONCE = 4
"""Blocks whose rows are copied at once; the first block's go alone, since it waits for nothing else."""


class Streams(Protocol):
    """What copies, and what computes."""

    def copy(self, target: Tensor, source: Tensor, after: Event | None) -> Event:
        """Begin a copy once `after` has happened; return the event of its end."""

    def wait(self, event: Event) -> None:
        """Let whatever is computed from now on wait for an event."""

    def computed(self) -> Event:
        """Return the event of the end of all that is being computed now."""


class CudaStreams:
    """A stream for copies beside the current one.

    Args:
        device: The GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._copies = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def copy(self, target: Tensor, source: Tensor, after: Event | None) -> torch.cuda.Event:
        """Begin a copy from pinned memory."""
        with torch.cuda.stream(self._copies):
            if isinstance(after, torch.cuda.Event):
                self._copies.wait_event(after)
            target.copy_(source, non_blocking=True)
            target.record_stream(self._copies)  # else torch may give it to others as soon as it is dropped here
            return _recorded(self._copies)

    def wait(self, event: Event) -> None:
        """Let the current stream wait."""
        if isinstance(event, torch.cuda.Event):
            torch.cuda.current_stream(self._device).wait_event(event)

    def computed(self) -> torch.cuda.Event:
        """Return the event of the end of the current stream's work."""
        return _recorded(torch.cuda.current_stream(self._device))


def _recorded(stream: torch.cuda.Stream) -> torch.cuda.Event:
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record(stream)
    return event


class Transfer:
    """One copy of the rows of some blocks.

    Args:
        streams: What copies.
        source: (L, U, D), in memory that the accelerator can read.
        target: (L, U, D), on the accelerator.
        after: What must have happened before the target is written to.
    """

    def __init__(self, streams: Streams, source: Tensor, target: Tensor, after: Event | None) -> None:
        self._streams = streams
        self._event_of: list[Event] = []
        start = 0
        while start < len(source):
            stop = min(start + (BLOCKS_AT_ONCE if start else 1), len(source))
            event = streams.copy(target[start:stop], source[start:stop], after)
            self._event_of += [event] * (stop - start)
            start = stop
        self._waited: Event | None = None

    @property
    def last(self) -> Event:
        """The end of the last copy."""
        return self._event_of[-1]

    def wait(self, block: int) -> None:
        """Let what is computed from now on wait for a block's rows."""
        event = self._event_of[block]
        if event is not self._waited:
            self._streams.wait(event)
            self._waited = event

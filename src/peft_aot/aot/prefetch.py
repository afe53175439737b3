"""Rows of the next batch, fetched while this one runs: a handle that the forward of that batch takes.

A batch begins when it is prefetched: it keeps the tasks of the model's bank that were there then.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from .plan import Asked
from .stack_rows import State, version
from .staged_rows import StagedRows


@dataclass(eq=False)
class Prefetched:
    """What was fetched for one batch; for one forward.

    Attributes:
        asked: What the batch asks for; its ids are a copy.
        given: The ids that were passed, and their version then.
        names: The `adapter_names` it was prefetched with.
        stack: The stack that its rows are for.
        states: The adapters' factors as they were.
        rows: Its rows; None if they are in memory anyway, or were used.
    """

    asked: Asked
    given: tuple[Tensor, int]
    names: tuple[str, ...] | None
    stack: nn.Module
    states: Mapping[str, State]
    rows: StagedRows | None
    used: bool = field(default=False, init=False)

    def check_names(self, names: object) -> None:
        """Refuse a forward with other adapter names."""
        given = tuple(names) if isinstance(names, (list, tuple)) else None
        if given != self.names:
            raise ValueError(
                f"expected the adapter_names that were prefetched, {self.names}, got {given}; pass the same to both"
            )

    def take(self, asked: Asked, like: Tensor, states: Mapping[str, State]) -> StagedRows | None:
        """Return the rows for a call, or None if they have to be gathered anew.

        Args:
            asked: What the call asks for.
            like: (B, T, D), its hidden states.
            states: The adapters' factors as they are.

        Raises:
            ValueError: Other token ids, or the handle was used before.
        """
        if self.used:
            raise ValueError("expected a handle that was not used, got one whose batch has run; call prefetch() again")
        ids, own = asked.ids, self.asked.ids
        untouched = ids is self.given[0] and version(ids) == self.given[1]  # told without waiting for an accelerator
        if not untouched and not (ids.shape == own.shape and torch.equal(ids, own)):
            raise ValueError(
                f"expected the input_ids that were prefetched, of shape {tuple(own.shape)}, got others of shape "
                f"{tuple(ids.shape)}; pass each batch its own handle"
            )
        self.used = True
        rows, self.rows = self.rows, None
        same = (asked.groups, asked.group_of, states) == (self.asked.groups, self.asked.group_of, self.states)
        return rows if rows is not None and same and rows.fits(like) else None


class _PerThread(threading.local):
    handle: Prefetched | None = None


_THREAD = _PerThread()


def current(stack: nn.Module) -> Prefetched | None:
    """Return the handle of this thread's forward, if it is for this stack."""
    handle = _THREAD.handle
    return handle if handle is not None and handle.stack is stack else None


@contextmanager
def using(handle: Prefetched | None) -> Iterator[None]:
    """For the duration of one forward, let `current` return its handle."""
    before, _THREAD.handle = _THREAD.handle, handle
    try:
        yield
    finally:
        _THREAD.handle = before

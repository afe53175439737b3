"""Handling a signal for a while."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def handling(number: int, handler: Callable[[int, FrameType | None], object]) -> Iterator[None]:
    """Let `handler` have a signal, and afterwards whoever had it before.

    Python allows signal handlers in the main thread only; elsewhere everything stays as it is.

    Args:
        number: The signal.
        handler: Called with its number and the frame it came in.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(number, handler)
    try:
        yield
    finally:
        signal.signal(number, previous)

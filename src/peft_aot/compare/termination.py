"""What whoever kills a process politely sends, taken for what a person presses."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def sigterm_as_interrupt() -> Iterator[list[int]]:
    """Hand SIGTERM to whoever handles Ctrl-C when it comes, or raise a KeyboardInterrupt if nobody does.

    Python allows signal handlers in the main thread only; elsewhere SIGTERM stays what it was.

    Yields:
        A list that is empty until SIGTERM comes.
    """
    came: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        came.append(number)
        interrupt = signal.getsignal(signal.SIGINT)
        if not callable(interrupt):  # a shell lets what it runs in the background ignore Ctrl-C
            raise KeyboardInterrupt
        interrupt(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield came
    finally:
        signal.signal(signal.SIGTERM, previous)

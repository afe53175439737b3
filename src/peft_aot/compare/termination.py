"""What whoever kills a process politely sends, taken for what a person presses."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from peft_aot.signals import handling


@contextmanager
def sigterm_as_interrupt() -> Iterator[list[int]]:
    """Hand SIGTERM to whoever handles Ctrl-C when it comes, or raise a KeyboardInterrupt if nobody does.

    Outside the main thread SIGTERM stays what it was.

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

    with handling(signal.SIGTERM, handle):
        yield came

"""Computing with one thread beside another that computes with all.

torch's threads on a CPU are OpenMP's, and every thread that calls torch gets a team of its own, as large as the
machine. Where more than one thread has a team there are more threads than cores, and GNU's OpenMP lets those of a team
sleep between two operations instead of spinning for a moment: a model of many small operations then runs slower,
whether or not the other team has anything to do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
_LOCK = threading.Lock()


@contextmanager
def one_thread(device: torch.device) -> Iterator[None]:
    """Let what this thread computes meanwhile get no team.

    Args:
        device: Where the model is; beside one on an accelerator all of the CPU is free, and nothing is changed.
    """
    if device.type != "cpu":
        yield
        return
    before = torch.get_num_threads()
    _set_own(1)
    try:
        yield
    finally:
        _set_own(before)


@contextmanager
def all_threads() -> Iterator[None]:
    """Let what this thread computes meanwhile get the team it would have, whatever `one_thread` does at this moment."""
    with _LOCK:
        torch.get_num_threads()  # torch decides for a thread when it is first asked, and not again
    yield


def _set_own(number: int) -> None:
    """Set the number of threads of this thread, and of no other: torch sets that of all that are yet to begin, too."""
    with _LOCK:
        theirs = _elsewhere(torch.get_num_threads)
        torch.set_num_threads(number)
        _elsewhere(lambda: torch.set_num_threads(theirs))


def _elsewhere(work: Callable[[], T]) -> T:
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(work).result()

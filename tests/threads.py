"""Asking from several threads while another changes what is asked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

ASKING = 4


def ask_while_changing(ask: Callable[[int], int], change: Callable[[], object]) -> int:
    """Run `ask(seed)` in four threads, and `change()` over and over in a fifth until they end; their numbers' sum."""
    stop = threading.Event()

    def changes() -> None:
        while not stop.is_set():
            change()

    with ThreadPoolExecutor(ASKING + 1) as pool:
        changing = pool.submit(changes)
        try:
            counts = list(pool.map(ask, range(ASKING)))
        finally:
            stop.set()
        changing.result()
    return sum(counts)

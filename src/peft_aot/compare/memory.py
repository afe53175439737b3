"""The most memory that a piece of work takes. Knows nothing of what the work is."""

from __future__ import annotations

import ctypes
import gc
import sys
import threading
from types import TracebackType

import psutil
import torch

INTERVAL = 0.02  # seconds between two looks at the process


def release_unused() -> None:
    """Give memory that is no longer used back to the system, so that it does not count as the next run's."""
    gc.collect()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; others return memory of themselves
        if trim is not None:
            trim(0)


class PeakMemory:
    """A context that measures the peak while it is open.

    On an accelerator: bytes of torch's tensors. On the CPU: resident bytes of the whole process, looked at every 20 ms,
    so that a shorter peak can be missed.

    Args:
        device: Where the work runs.

    Attributes:
        bytes: The peak so far, with what Python and torch themselves take (on the CPU some 500 MB) and whatever
            libraries keep of earlier work.
        added: The same less what was taken when the context was opened.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0
        self._before = 0
        self._over = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)

    @property
    def added(self) -> int:
        """Bytes beyond those that were taken before."""
        return max(0, self.bytes - self._before)

    def _watch(self) -> None:
        process = psutil.Process()
        while True:
            self.bytes = max(self.bytes, process.memory_info().rss)
            if self._over.wait(INTERVAL):
                return

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cpu":
            self._before = psutil.Process().memory_info().rss
            self._watcher.start()
        else:
            self._before = int(torch.accelerator.memory_allocated(self.device))
            torch.accelerator.reset_peak_memory_stats(self.device)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.device.type == "cpu":
            self._over.set()
            self._watcher.join()
        else:
            self.bytes = int(torch.accelerator.max_memory_allocated(self.device))

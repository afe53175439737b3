"""Telling the system which rows of a mapped table will be read, so that it fetches them at once and not one by one.

A row that is not in memory is fetched when it is touched, and whoever touched it waits; a batch touches hundreds. Told
beforehand, the system reads them side by side.
"""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path

import numpy as np
from torch import Tensor


class ReadAhead:
    """Announces rows of one file, each once: afterwards the system has them, or has had a reason to drop them.

    Args:
        path: The file; opened when there is something to announce, since a thousand tables may be in use.
        start: Where its rows begin, in bytes.
        rows: Number of rows.
        row_bytes: Size of each.
    """

    def __init__(self, path: Path, start: int, rows: int, row_bytes: int) -> None:
        self._path = path
        self._start = start
        self._row_bytes = row_bytes
        self._announced = np.zeros(rows, dtype=bool)  # no tensor: one made in inference mode could not be written to

    def announce(self, rows: Tensor) -> None:
        """Announce rows (U,), int64 on the CPU; where the system cannot be told (not Linux), do nothing."""
        asked = rows.numpy()
        new = asked[~self._announced[asked]]
        if not len(new):
            return
        self._announced[new] = True
        if sys.platform == "linux":
            with contextlib.suppress(OSError), self._path.open("rb", buffering=0) as file:  # a hint, no more
                for row in new.tolist():
                    start = self._start + row * self._row_bytes
                    os.posix_fadvise(file.fileno(), start, self._row_bytes, os.POSIX_FADV_WILLNEED)

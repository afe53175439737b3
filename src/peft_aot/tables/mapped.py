"""Whether a file is still what was mapped.

Touching a mapped page that its file no longer has ends the process (SIGBUS), and pages of a file that was written to in
place are not what they were. A file that was deleted or replaced by another is no trouble: the mapping keeps the old
one.
"""

from __future__ import annotations

import os
from pathlib import Path


class MappedFile:
    """A file as it is when this is made.

    Args:
        path: The file.

    Raises:
        OSError: No such file.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = os.path.abspath(path)  # whatever the current folder will be; a str, as a Path is slower
        found = os.stat(self._path)
        self._file = found.st_dev, found.st_ino
        self._size, self._written = found.st_size, found.st_mtime_ns

    @property
    def present(self) -> bool:
        """Whether its path still leads to it, unchanged."""
        try:
            return vars(MappedFile(self._path)) == vars(self)
        except OSError:
            return False

    @property
    def changed(self) -> bool:
        """Whether it has been written to or truncated, as far as can be seen: where it was, if it is still there."""
        try:
            found = os.stat(self._path)
        except OSError:
            return False
        same = found.st_size == self._size and found.st_mtime_ns == self._written
        return not same and (found.st_dev, found.st_ino) == self._file

"""Files and folders that are being written: named after their process, so that those of killed ones can be told.

A name holds this machine's name, the process and a random part: several threads and processes may write beside each
other. Removed is what was named on this machine by a process that is there no more. A process number that is in use
again keeps a remnant until that process ends too; what another machine left is never touched, since its processes
cannot be seen from here.
"""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

SCRATCH = ".peft_aot_scratch"


def unfinished(folder: Path, stem: str) -> Path:
    """Return a path in `folder`, in use nowhere, for what this process is about to write."""
    return folder / f"{stem}.{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(4)}"


def discard_abandoned(folder: Path, stem: str) -> None:
    """Remove what killed processes of this machine were writing under the same stem."""
    name = re.compile(rf"{re.escape(f'{stem}.{socket.gethostname()}')}\.(\d+)\.\w+(\.\w+)?")
    with contextlib.suppress(OSError):  # a folder not to be listed, another user's remnant, one removed meanwhile
        for path in list(folder.iterdir()):
            match = name.fullmatch(path.name)
            if match and not psutil.pid_exists(int(match[1])):
                if path.is_dir():
                    shutil.rmtree(path, ignore_errors=True)
                else:
                    path.unlink(missing_ok=True)


@contextlib.contextmanager
def scratch_folder(parent: Path) -> Iterator[Path]:
    """Yield an empty folder in `parent` that disappears."""
    discard_abandoned(parent, SCRATCH)
    folder = unfinished(parent, SCRATCH)
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path beside `path` for a file that takes its place once written and flushed, or disappears.

    Whatever interrupts it, `path` is as it was before or complete. The last of several writers stays.
    """
    stem = f".{path.name}.partial"
    discard_abandoned(path.parent, stem)
    partial = unfinished(path.parent, stem)
    try:
        yield partial
        flush(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def flush(path: Path) -> None:
    """Have the system write a file or folder to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

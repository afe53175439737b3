"""Saving several files as one: all of them or, after a crash, those that were there before.

New files are written into a hidden folder inside the destination and flushed; the folder is renamed once it is
complete. Then they are moved in, the marker file (the adapter's configuration) first: that move makes the save final,
and the rest of the moves is finished by whoever comes next (`finish`). Whoever reads the marker before calling `finish`
has therefore read the one that belongs to the files.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from peft_aot.unfinished import discard_abandoned, flush, unfinished

WRITING = ".peft_aot_writing"
READY = ".peft_aot_ready"
REMOVED = ".removed"


@contextmanager
def staged(destination: str | Path, marker: str, remove: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty folder whose files replace those of `destination` at the end, or never.

    Several processes may save into one folder: each save is complete, and the last one stays.

    Args:
        destination: The folder to save into; created if needed.
        marker: Name of the file whose move makes the save final.
        remove: Names in `destination` that go away if the new files do not include them.

    Raises:
        FileNotFoundError: The marker was not written.
    """
    destination = Path(destination)
    destination.mkdir(parents=True, exist_ok=True)
    discard_abandoned(destination, WRITING)
    folder = unfinished(destination, WRITING)
    folder.mkdir()
    try:
        yield folder
        if not (folder / marker).is_file():
            raise FileNotFoundError(
                f"expected {marker} among the files to save, got {sorted(os.listdir(folder))}; write it into the folder"
            )
        for name in remove:
            if not (folder / name).exists():
                (folder / f"{name}{REMOVED}").touch()
        for path in (*folder.rglob("*"), folder):
            if path.is_file():
                shutil.copymode(folder / marker, path)  # safetensors are written for their owner alone
            flush(path)
        with _lock(destination):
            _move_in(destination, folder, marker)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def finish(destination: str | Path, marker: str) -> None:
    """Complete a save that was interrupted after it had become final."""
    destination = Path(destination)
    ready = destination / READY
    if ready.is_dir() and not (ready / marker).exists():
        with _lock(destination):
            _finish(destination, marker)


def _move_in(destination: Path, folder: Path, marker: str) -> None:
    ready = destination / READY
    _finish(destination, marker)
    if ready.is_dir():  # not final; in one step, since a half-deleted one without its marker would look final
        abandoned = folder.with_name(f"{folder.name}.abandoned")
        os.rename(ready, abandoned)
        shutil.rmtree(abandoned)
    os.rename(folder, ready)
    try:
        os.replace(ready / marker, destination / marker)
    except BaseException:
        if (ready / marker).exists():
            os.rename(ready, folder)
        raise
    _finish(destination, marker)


def _finish(destination: Path, marker: str) -> None:
    ready = destination / READY
    if not ready.is_dir() or (ready / marker).exists():
        return
    for path in sorted(p for p in ready.rglob("*") if p.is_file()):
        target = destination / path.relative_to(ready)
        if path.suffix == REMOVED:
            target.with_suffix("").unlink(missing_ok=True)
            path.unlink()
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
    flush(destination)
    shutil.rmtree(ready, ignore_errors=True)


def _lock(destination: Path) -> FileLock:
    """One process at a time moves files into a folder; the lock stands elsewhere, so that none is left behind."""
    name = hashlib.sha256(str(destination.resolve()).encode()).hexdigest()[:16]
    return FileLock(Path(tempfile.gettempdir()) / f"peft_aot_{name}.lock")

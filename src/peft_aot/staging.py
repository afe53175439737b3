"""Saving several files as one: all of them or, after a crash, those that were there before.

New files are written into a hidden folder inside the destination and flushed; the folder is renamed once it is
complete. Then they are moved in, the marker file (the adapter's configuration) first: that move makes the save final,
and the rest of the moves is finished by whoever comes next (`finish`). Whoever reads the marker before calling `finish`
has therefore read the one that belongs to the files.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

WRITING = ".peft_aot_writing"
READY = ".peft_aot_ready"
REMOVED = ".removed"


@contextmanager
def staged(destination: str | Path, marker: str, remove: Sequence[str] = ()) -> Iterator[Path]:
    """Yield an empty folder whose files replace those of `destination` at the end, or never.

    Args:
        destination: The folder to save into; created if needed.
        marker: Name of the file whose move makes the save final.
        remove: Names in `destination` that go away if the new files do not include them.

    Raises:
        FileNotFoundError: The marker was not written.
    """
    destination = Path(destination)
    finish(destination, marker)
    folder, ready = destination / WRITING, destination / READY
    if ready.is_dir():  # not final; in one step, since a half-deleted one without its marker would look final
        shutil.rmtree(folder, ignore_errors=True)
        os.rename(ready, folder)
    if folder.is_dir():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    try:
        yield folder
        if not (folder / marker).is_file():
            raise FileNotFoundError(f"expected {marker} among the files to save, got {sorted(os.listdir(folder))}")
        for name in remove:
            if not (folder / name).exists():
                (folder / f"{name}{REMOVED}").touch()
        for path in (*folder.rglob("*"), folder):
            _flush(path)
        os.rename(folder, ready)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    os.replace(ready / marker, destination / marker)
    finish(destination, marker)


def finish(destination: str | Path, marker: str) -> None:
    """Complete a save that was interrupted after it had become final.

    A save that is not final is left alone: another process may be at it. The next save discards it.
    """
    destination = Path(destination)
    ready = destination / READY
    if not ready.is_dir() or (ready / marker).exists():
        return
    for path in sorted(p for p in ready.rglob("*") if p.is_file()):
        target = destination / path.relative_to(ready)
        with contextlib.suppress(FileNotFoundError):  # another process finishes the same save
            if path.suffix == REMOVED:
                target.with_suffix("").unlink(missing_ok=True)
                path.unlink()
            else:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, target)
    _flush(destination)
    shutil.rmtree(ready, ignore_errors=True)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

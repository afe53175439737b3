"""Which tasks should be served: a record beside the adapters, read by whoever serves them and changed by any of them.

A file and not a process holds it, so that it outlives whatever dies. Knows nothing of engines and of Ray.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from filelock import FileLock, Timeout

from peft_aot.loading import ADAPTER_CONFIG
from peft_aot.suggestions import did_you_mean
from peft_aot.unfinished import replacing

from .errors import UnknownTask

RECORD = "tasks.json"
PATIENCE = 60.0  # seconds that a change waits for another one to end, which may be loading from the Hub
Mark = tuple[int, int, int]


@dataclass(frozen=True)
class WantedTask:
    """A task as it should be served.

    Attributes:
        adapter: A folder below the tasks folder, a folder's path, or a hub id.
        number: Version of the record that wanted it first: a folder that was written anew and is wanted anew is
            another task, though its path is the same.
        revision: Of the hub's repository.
    """

    adapter: str
    number: int
    revision: str | None = None


@dataclass(frozen=True)
class Wanted:
    """All tasks that should be served.

    Attributes:
        version: One more with every change.
        tasks: By name.
    """

    version: int
    tasks: Mapping[str, WantedTask]

    def with_task(self, name: str, adapter: str, revision: str | None = None) -> Wanted:
        """Return the next version, with a task added or replaced."""
        version = self.version + 1
        return Wanted(version, {**self.tasks, name: WantedTask(adapter, version, revision)})

    def without(self, name: str) -> Wanted:
        """Return the next version, with a task less.

        Raises:
            UnknownTask: There is none of that name.
        """
        if name not in self.tasks:
            hint = did_you_mean(name, self.tasks) if self.tasks else "there are no tasks"
            raise UnknownTask(f"expected the name of a task to unload, got {name!r}; {hint}")
        return replace(
            self, version=self.version + 1, tasks={key: task for key, task in self.tasks.items() if key != name}
        )


class TasksFolder:
    """A folder of adapters and the record of those that should be served.

    The first to open a folder without a record writes one, of every folder in it that holds an adapter; from then on
    the record says it all. It is replaced as a whole, by one at a time.

    Args:
        folder: Of the adapters, on storage that all who serve them share.

    Raises:
        FileNotFoundError: No such folder.
        OSError: The record cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"expected a folder of adapters, got no folder at {folder}; make it, on storage that all nodes share"
            )
        self._folder = folder
        self._record = folder / RECORD
        self._lock = FileLock(f"{self._record}.lock", timeout=PATIENCE)
        with self._locked():
            if not self._record.exists():
                found = sorted(path.parent.name for path in folder.glob(f"*/{ADAPTER_CONFIG}"))
                self.write(Wanted(1, {name: WantedTask(name, 1) for name in found}))

    def read(self) -> Wanted:
        """Return what is wanted now.

        Raises:
            ValueError: The record is damaged.
            OSError: It cannot be read.
        """
        text = self._record.read_text(encoding="utf-8")
        try:
            told = json.loads(text)
            tasks = {name: WantedTask(**task) for name, task in told["tasks"].items()}
            return Wanted(int(told["version"]), tasks)
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise ValueError(
                f"expected the record of tasks in {self._record}, got {type(error).__name__}: {error}; restore it, or "
                f"delete it to serve every adapter in the folder"
            ) from error

    def mark(self) -> Mark | None:
        """Return what differs once the record was replaced; None if there is none."""
        try:
            stat = self._record.stat()
        except FileNotFoundError:
            return None
        return stat.st_ino, stat.st_mtime_ns, stat.st_size

    @contextlib.contextmanager
    def changing(self) -> Iterator[Wanted]:
        """Keep others from changing the record, and hand out what it says.

        Raises:
            TimeoutError: Another change does not end.
        """
        with self._locked():
            yield self.read()

    def write(self, wanted: Wanted) -> None:
        """Replace the record, while others are kept from it: whatever happens, the old or the new one is there."""
        told = {"version": wanted.version, "tasks": {name: asdict(task) for name, task in wanted.tasks.items()}}
        with replacing(self._record) as partial:
            partial.write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")

    def locate(self, adapter: str) -> str:
        """Return where an adapter is: below the folder if it is there, otherwise as it was told."""
        below = self._folder / adapter
        return str(below) if below.is_dir() else adapter

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        try:
            self._lock.acquire()
        except Timeout as error:
            raise TimeoutError(
                f"expected {self._record} to be free within {PATIENCE:g} s, got another change that has not ended; try "
                f"again, and see what holds {self._lock.lock_file}"
            ) from error
        try:
            yield
        finally:
            self._lock.release()

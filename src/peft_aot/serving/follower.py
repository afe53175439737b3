"""Keeps the tasks of an engine those that its tasks folder wants, by loading and removing the difference.

Knows nothing of Ray. It looks now and then, at once when a task is asked for that it does not have, and is told.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .engine import Engine
from .wanted import TasksFolder, Wanted, WantedTask

LOADERS = 4  # adapters that are read at once: most of it is waiting for storage
RETRY = 10.0  # seconds after which an adapter that could not be loaded is tried again
log = logging.getLogger(__name__)


class TaskUnavailable(RuntimeError):
    """A task that should be served, and whose adapter could not be loaded."""


class Follower:
    """Keeps an engine's tasks as they are wanted; nobody else may change them. Any thread may call it.

    An adapter that cannot be loaded costs its own task only, and is tried again every 10 s.

    Args:
        engine: The engine, without tasks.
        folder: Says what is wanted. All of it is loaded when this returns.

    Raises:
        ValueError: The record is damaged.
    """

    def __init__(self, engine: Engine, folder: TasksFolder) -> None:
        self._engine, self._folder = engine, folder
        self._lock = threading.RLock()
        self._applied: dict[str, WantedTask] = {}
        self._failed: dict[str, str] = {}
        self._tried = 0.0
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._mark = folder.mark()
        self._wanted = folder.read()
        self._make_so()

    @property
    def version(self) -> int:
        """Version of what is wanted, as far as it is known here."""
        return self._wanted.version

    @property
    def failed(self) -> Mapping[str, str]:
        """Why tasks could not be loaded, by name."""
        return dict(self._failed)

    def problems(self, names: Collection[str]) -> Mapping[str, Exception]:
        """Return why tasks that are wanted could not be loaded, of those of the names that are such."""
        return {
            name: TaskUnavailable(
                f"expected the adapter of task '{name}' to load, got {reason}; it is tried again within {RETRY:g} s, "
                f"load another or unload the task"
            )
            for name, reason in self.failed.items()
            if name in names
        }

    def catch_up(self) -> None:
        """Do what the record says, if it has changed or something had failed.

        A record that cannot be read changes nothing, and is logged once.
        """
        with self._lock:
            before = self._wanted.version
            try:
                mark = self._folder.mark()
                if mark is not None and mark != self._mark:
                    self._mark = mark
                    self._take(self._folder.read())
            except (OSError, ValueError) as error:
                log.warning("the tasks stay as they are: %s", error)
            again = self._failed and time.monotonic() - self._tried > RETRY
            if self._wanted.version != before or again:
                self._make_so()

    def follow(self, interval: float) -> None:
        """Catch up every `interval` seconds from now on, in a thread."""
        self._thread = threading.Thread(target=self._run, args=(interval,), name="peft_aot follows", daemon=True)
        self._thread.start()

    @property
    def following(self) -> bool:
        """Whether that thread lives."""
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """End that thread, after what it is loading."""
        self._stopped.set()

    def _run(self, interval: float) -> None:
        while not self._stopped.wait(interval):
            self.catch_up()

    def apply(self, wanted: Wanted) -> None:
        """Do what is wanted, unless something later is wanted already."""
        with self._lock:
            self._take(wanted)
            self._make_so()

    def load(self, name: str, adapter: str, revision: str | None = None) -> Wanted:
        """Add or replace a task here, and then in the record: what does not load is never wanted.

        Returns:
            What is wanted now, for others to `apply`.

        Raises:
            What `Engine.add_task` raises; nothing has changed then.
        """
        with self._lock, self._folder.changing() as now:
            wanted = now.with_task(name, adapter, revision)
            self._put(name, wanted.tasks[name])
            return self._record(wanted)

    def unload(self, name: str) -> Wanted:
        """Remove a task from the record, and then here.

        Returns:
            What is wanted now, for others to `apply`.

        Raises:
            UnknownTask: Nobody wants it.
        """
        with self._lock, self._folder.changing() as now:
            return self._record(now.without(name))

    def _record(self, wanted: Wanted) -> Wanted:
        try:
            self._folder.write(wanted)
            self._take(wanted)
        finally:
            self._make_so()  # what could not be recorded is taken back
        return wanted

    def _take(self, wanted: Wanted) -> None:
        # a network file system may show an older record than the one that this replica was told of
        if wanted.version > self._wanted.version:
            self._wanted = wanted

    def _make_so(self) -> None:
        wanted = self._wanted.tasks
        self._tried = time.monotonic()
        for name in [name for name in self._applied if name not in wanted]:
            del self._applied[name]
            self._engine.remove_task(name)
        for name in [name for name in self._failed if name not in wanted]:
            del self._failed[name]
        missing = [name for name, task in wanted.items() if self._applied.get(name) != task]
        if missing:
            with ThreadPoolExecutor(min(LOADERS, len(missing)), "peft_aot loads") as pool:
                list(pool.map(self._try, missing))

    def _try(self, name: str) -> None:
        try:
            self._put(name, self._wanted.tasks[name])
        except Exception as error:  # whatever is wrong with one adapter, the others are served
            self._failed[name] = f"{type(error).__name__}: {error}"
            log.warning("task '%s' could not be loaded: %s", name, self._failed[name])

    def _put(self, name: str, task: WantedTask) -> None:
        put = self._engine.replace_task if name in self._applied else self._engine.add_task
        where = self._folder.locate(task.adapter)
        if task.revision is None:
            put(name, where)
        else:
            put(name, where, revision=task.revision)
        self._applied[name] = task
        self._failed.pop(name, None)
        log.info("task '%s' is served from %s", name, Path(where))

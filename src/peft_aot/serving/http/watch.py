"""A folder whose subfolders are tasks: loaded at the start and, if watched, followed as they come, change and go.

A subfolder is a task, named as the folder, once it holds a complete adapter. Looks at sizes and times rather than
messages of the file system: those do not reach across a network's or a container's file systems.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from pathlib import Path
from typing import TypeAlias

from peft_aot.loading import ADAPTER_CONFIG
from peft_aot.serving.errors import EngineClosed, UnknownTask
from peft_aot.serving.request import TaskInfo
from peft_aot.staging import finish

from .adapters import incomplete
from .contract import Engine
from .health import Readiness
from .logs import LOGGER, fields
from .schemas import LONGEST_NAME

Found: TypeAlias = tuple[tuple[str, int, int, int], ...] | str
STOP_SECONDS = 10.0
log = logging.getLogger(LOGGER)


class TaskFolder:
    """A folder of tasks, and what an engine has of it.

    Args:
        engine: Serves the tasks.
        folder: Their folder.

    Raises:
        FileNotFoundError: There is no such folder.
    """

    def __init__(self, engine: Engine, folder: Path) -> None:
        if not folder.is_dir():
            raise FileNotFoundError(
                f"expected a folder of tasks, got {folder}, which is none; create it or name another"
            )
        self._engine = engine
        self._folder = folder
        self._seen: dict[str, Found] = {}
        self._tried: dict[str, Found] = {}
        self._served: dict[str, TaskInfo] = {}
        self._taken: set[str] = set()

    def load(self, stopped: threading.Event | None = None) -> int:
        """Load every complete task; what is broken is logged and left out.

        Args:
            stopped: No other task is begun once it is set.

        Returns:
            How many were loaded.
        """
        self._seen = self._look()
        for name, found in self._seen.items():
            if stopped is not None and stopped.is_set():
                break
            self._update(name, found)
        return len(self._served)

    def follow(self) -> None:
        """Look once more and take over what is as it was at the look before: what still changes is not ready."""
        try:
            seen = self._look()
        except OSError as error:  # unmounted, perhaps; its tasks stay
            log.warning("the folder of tasks cannot be read", extra=fields(error=str(error)))
            return
        before, self._seen = self._seen, seen
        for name, found in seen.items():
            if before.get(name) == found:
                self._update(name, found)
        for name in self._tried.keys() - seen.keys() - before.keys():
            self._forget(name)
        self._taken &= seen.keys()

    def _look(self) -> dict[str, Found]:
        """Each subfolder's files, or what keeps it from being a task."""
        names = sorted(entry.name for entry in os.scandir(self._folder) if not entry.name.startswith("."))
        return {name: self._files(self._folder / name) for name in names if (self._folder / name).is_dir()}

    def _files(self, folder: Path) -> Found:
        if len(folder.name) > LONGEST_NAME:
            return f"expected a name of at most {LONGEST_NAME} characters, got {len(folder.name)}; rename the folder"
        try:
            finish(folder, ADAPTER_CONFIG)
            problem = incomplete(folder, self._folder)
            if problem is not None:
                return problem
            found = sorted(path for path in folder.rglob("*") if not path.name.startswith(".") and path.is_file())
            stats = [(path, path.stat()) for path in found]
        except OSError as error:  # files that go while they are looked at
            return f"expected files that can be read, got {type(error).__name__}; make them readable"
        return tuple((str(p.relative_to(folder)), stat.st_size, stat.st_mtime_ns, stat.st_ino) for p, stat in stats)

    def _update(self, name: str, found: Found) -> None:
        if self._tried.get(name) == found:
            return
        if name in self._engine.tasks and not self._is_own(name) and not isinstance(found, str):
            if name not in self._taken:  # tried again once the name is free
                self._taken.add(name)
                log.warning("a folder's name is taken by a task that a call has loaded", extra=fields(task=name))
            return
        self._taken.discard(name)
        self._tried[name] = found
        if isinstance(found, str):
            log.warning("a folder is no task", extra=fields(task=name, error=found))
            return
        change = self._engine.replace_task if self._is_own(name) else self._engine.add_task
        try:
            self._served[name] = change(name, self._folder / name)
        except Exception as error:  # whatever a broken file makes its reader raise, the others are served
            log.warning("a task could not be loaded", extra=fields(task=name, error=str(error)))
            return
        log.info("task loaded", extra=fields(task=name))

    def _forget(self, name: str) -> None:
        del self._tried[name]
        own = self._is_own(name)
        self._served.pop(name, None)
        if own:
            with contextlib.suppress(UnknownTask, EngineClosed):  # unloaded by somebody else
                self._engine.remove_task(name)
            log.info("task removed", extra=fields(task=name))

    def _is_own(self, name: str) -> bool:
        """Whether the task of that name is the one that was loaded from the folder, and not another by a call."""
        return name in self._served and self._engine.tasks.get(name) is self._served[name]


def load_folder(engine: Engine, folder: Path) -> int:
    """Load every complete task of a folder into an engine; what is broken is logged and left out.

    Returns:
        How many were loaded.
    """
    return TaskFolder(engine, folder).load()


class Watcher:
    """A thread that loads a folder of tasks and follows it.

    Args:
        tasks: The folder.
        interval: Seconds between looks; None ends after loading.
        readiness: Told when everything is loaded.
    """

    def __init__(self, tasks: TaskFolder, interval: float | None, readiness: Readiness) -> None:
        self._tasks = tasks
        self._interval = interval
        self._readiness = readiness
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="tasks", daemon=True)

    def start(self) -> None:
        """Begin."""
        self._thread.start()

    def stop(self) -> None:
        """End after the task that is being loaded, or leave it behind if that takes long."""
        self._stopped.set()
        self._thread.join(timeout=STOP_SECONDS)

    def _run(self) -> None:
        try:
            self._tasks.load(self._stopped)
        except OSError as error:
            log.warning("the folder of tasks cannot be read", extra=fields(error=str(error)))
        self._readiness.loaded = True
        while self._interval is not None and not self._stopped.wait(self._interval):
            self._tasks.follow()

"""A replica's engine as the HTTP endpoints see it: requests go through the replica, changes of tasks to all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from .engine import Engine
from .errors import UnknownTask
from .follower import TaskUnavailable
from .http.problems import INVALID, Problem
from .request import Answer, Request, TaskInfo


class TaskChanges(Protocol):
    """Changes tasks on every replica, and waits for that."""

    def load(self, name: str, adapter: str | Path) -> object:
        """Add or replace a task."""

    def unload(self, name: str) -> object:
        """Remove a task."""


class ClusterEngine:
    """One replica's engine and every replica's tasks, as `http.contract.Engine`.

    Args:
        engine: The replica's.
        ask: Answers a request, on `loop`.
        loop: The replica's.
        changes: Changes tasks on every replica.
        closing: Called before the engine is closed.
    """

    def __init__(
        self,
        engine: Engine,
        ask: Callable[[Request], Coroutine[Any, Any, Answer]],
        loop: asyncio.AbstractEventLoop,
        changes: TaskChanges,
        closing: Callable[[], None],
    ) -> None:
        self.backbone, self.width, self.observers = engine.backbone, engine.width, engine.observers
        self._engine, self._ask, self._loop = engine, ask, loop
        self._changes, self._closing = changes, closing

    @property
    def queued(self) -> int:
        """Requests that wait."""
        return self._engine.queued

    @property
    def tasks(self) -> Mapping[str, TaskInfo]:
        """The tasks that this replica has."""
        return self._engine.tasks

    def submit(self, request: Request) -> Future[Answer]:
        """Queue a request; what is wrong with it is told by its answer to come."""
        return asyncio.run_coroutine_threadsafe(self._answer(request), self._loop)

    async def _answer(self, request: Request) -> Answer:
        try:
            return await self._ask(request)
        except UnknownTask:
            raise
        except ValueError as error:
            raise Problem(422, INVALID, str(error)) from error
        except TaskUnavailable as error:
            raise unavailable(error) from error

    def add_task(self, name: str, adapter: str | Path) -> TaskInfo:
        """Add a task to every replica."""
        try:
            self._changes.load(name, adapter)
        except TimeoutError as error:
            raise Problem(504, "deadline_exceeded", str(error)) from error
        return self._engine.tasks[name]

    def replace_task(self, name: str, adapter: str | Path) -> TaskInfo:
        """Replace a task on every replica."""
        return self.add_task(name, adapter)

    def remove_task(self, name: str) -> None:
        """Remove a task from every replica."""
        try:
            self._changes.unload(name)
        except TimeoutError as error:
            raise Problem(504, "deadline_exceeded", str(error)) from error

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Close the replica's engine."""
        self._closing()
        self._engine.close(drain, timeout)


def unavailable(error: Exception) -> Problem:
    """Say over HTTP that a task that should be there could not be loaded."""
    return Problem(503, "unavailable", str(error), {"Retry-After": "10"})

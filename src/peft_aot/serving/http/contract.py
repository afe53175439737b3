"""What this server needs of an engine; it knows no other part of one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol

from peft_aot.serving.request import Answer, Request, TaskInfo


class Batch(Protocol):
    """What an engine tells of a batch that it has answered."""

    @property
    def examples(self) -> int:
        """Requests in it."""

    @property
    def tasks(self) -> int:
        """Distinct tasks in it."""

    @property
    def tokens(self) -> int:
        """Tokens in it, padding left out."""

    @property
    def padded_tokens(self) -> int:
        """Tokens in it, padding counted."""

    @property
    def seconds(self) -> float:
        """How long it was computed."""

    @property
    def waited(self) -> Sequence[float]:
        """Seconds that each request had waited before."""

    @property
    def hits(self) -> Mapping[str, int]:
        """Where rows were found, by level of the cache: memory, table, rows, factors."""


class Engine(Protocol):
    """Many tasks on one backbone, answered in batches; every method may be called from any thread."""

    @property
    def backbone(self) -> str:
        """Name of the backbone."""

    @property
    def width(self) -> int:
        """Length of an embedding."""

    @property
    def queued(self) -> int:
        """Requests that wait."""

    @property
    def tasks(self) -> Mapping[str, TaskInfo]:
        """The tasks of this moment: a mapping that never changes in place."""

    @property
    def observers(self) -> list[Callable[[Any], None]]:
        """Called after each batch with a `Batch`, from the engine's thread."""

    def add_task(self, name: str, adapter: str | Path) -> TaskInfo:
        """Load a task; ValueError, TypeError or FileNotFoundError say what is wrong with it."""

    def replace_task(self, name: str, adapter: str | Path) -> TaskInfo:
        """Load a task in the place of the one of that name."""

    def remove_task(self, name: str) -> None:
        """Forget a task; UnknownTask if there is none of that name."""

    def submit(self, request: Request) -> Future[Answer]:
        """Queue a request; UnknownTask, ValueError, Overloaded or EngineClosed refuse it at once."""

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests and, with `drain`, answer those that were taken; again is harmless."""

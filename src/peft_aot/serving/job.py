"""What waits to be done, as data."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


def never() -> bool:
    """Return False: the job is not cancelled."""
    return False


@dataclass(eq=False)
class Job(Generic[T]):
    """Something to do for a task.

    Attributes:
        item: What to do.
        task: The task, which shares fairly with the others.
        tokens: Length in tokens.
        arrived: When it came, in seconds of the caller's clock.
        deadline: When it is no longer wanted, by the same clock; None waits.
        cancelled: Says whether it is no longer wanted now. Once it does, it always does.

    Raises:
        ValueError: If it has no tokens.
    """

    item: T
    task: Hashable
    tokens: int
    arrived: float
    deadline: float | None = None
    cancelled: Callable[[], bool] = never

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"expected a job of one token or more, got {self.tokens}; answer an empty text at once")

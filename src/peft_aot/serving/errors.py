"""Why an engine does not answer; every message says what to do."""

from __future__ import annotations


class UnknownTask(ValueError):
    """No task of that name."""


class Overloaded(RuntimeError):
    """The queue has no room.

    Attributes:
        retry_after: Seconds after which there should be room again.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        super().__init__(message, retry_after)
        self.retry_after = retry_after

    def __str__(self) -> str:
        return str(self.args[0])


class DeadlineExceeded(TimeoutError):
    """The request's timeout passed before it was answered."""


class EngineClosed(RuntimeError):
    """The engine takes no more requests."""

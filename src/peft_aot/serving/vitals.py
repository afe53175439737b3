"""Whether an engine still works: an accelerator that has failed may fail for ever, and only a new process helps."""

from __future__ import annotations

import asyncio

from peft_aot.routing import BASE

from .engine import Engine
from .errors import DeadlineExceeded, EngineClosed, Overloaded
from .follower import Follower, TaskUnavailable
from .request import Request

OWN = (ValueError, Overloaded, DeadlineExceeded, EngineClosed, TaskUnavailable)
PATIENCE = 5.0  # seconds; an engine that is merely busy is well


class Vitals:
    """Looks after an engine and what keeps its tasks.

    Args:
        engine: The engine.
        follower: Of its tasks.
    """

    def __init__(self, engine: Engine, follower: Follower) -> None:
        self._engine, self._follower = engine, follower
        self._doubtful = False

    def note(self, error: Exception) -> None:
        """Take note of what a request met."""
        self._doubtful = self._doubtful or not isinstance(error, OWN)

    async def check(self) -> None:
        """Ask the engine a question, if a request met what is no fault of its own since the last one was answered.

        Raises:
            RuntimeError: It does not work, or its tasks are no longer followed.
        """
        if not self._follower.following:
            raise RuntimeError("expected a thread that follows the tasks, got one that ended; start another replica")
        if not self._doubtful:
            return
        try:
            await asyncio.wrap_future(self._engine.submit(Request(BASE, "health", timeout=PATIENCE)))
        except (Overloaded, DeadlineExceeded, EngineClosed):
            return
        except Exception as error:
            raise RuntimeError(
                f"expected an engine that answers, got {type(error).__name__}: {error}; start another replica"
            ) from error
        self._doubtful = False

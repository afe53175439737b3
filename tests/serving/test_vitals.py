"""A replica is replaced when its engine no longer answers, not when a request is at fault or it is busy."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from peft_aot.serving import DeadlineExceeded, Overloaded, UnknownTask
from peft_aot.serving.vitals import Vitals


class Asked:
    """An engine that fails or answers, and counts how often it was asked."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.times = error, 0

    def submit(self, request: Any) -> Future[str]:
        assert request.task == "__base__" and request.timeout
        self.times += 1
        future: Future[str] = Future()
        if self.error is None:
            future.set_result("answer")
        else:
            future.set_exception(self.error)
        return future


def make(engine: Asked, following: bool = True) -> Vitals:
    return Vitals(engine, SimpleNamespace(following=following))  # type: ignore[arg-type]


@pytest.mark.parametrize("error", [UnknownTask("a"), ValueError("a"), Overloaded("a", 1.0), DeadlineExceeded("a")])
def test_requests_that_are_at_fault_say_nothing(error: Exception) -> None:
    engine = Asked()
    vitals = make(engine)
    vitals.note(error)
    asyncio.run(vitals.check())
    assert engine.times == 0


def test_a_doubt_is_cleared_by_an_answer() -> None:
    engine = Asked()
    vitals = make(engine)
    vitals.note(RuntimeError("once"))
    vitals.note(ValueError("afterwards"))
    asyncio.run(vitals.check())
    asyncio.run(vitals.check())
    assert engine.times == 1


def test_an_engine_that_is_broken_stays_so_until_it_answers() -> None:
    vitals = make(Asked(RuntimeError("device-side assert")))
    vitals.note(RuntimeError("device-side assert"))
    for _ in range(3):
        with pytest.raises(RuntimeError, match="expected an engine that answers, got RuntimeError: device-side .*; st"):
            asyncio.run(vitals.check())


def test_an_engine_that_is_busy_is_well() -> None:
    vitals = make(Asked(DeadlineExceeded("late")))
    vitals.note(RuntimeError("once"))
    asyncio.run(vitals.check())


def test_tasks_that_nobody_follows() -> None:
    with pytest.raises(RuntimeError, match="expected a thread that follows the tasks, got one that ended; start"):
        asyncio.run(make(Asked(), following=False).check())

"""Killing work at every step it takes on disk, or at any moment, to see what it leaves behind."""

from __future__ import annotations

import os
import signal
import time
import traceback
from collections.abc import Callable

import pytest

STEPS = ("replace", "rename", "fsync", "unlink", "rmdir", "mkdir", "open")
KILLED, DONE = 99, 0


class Dead(BaseException):
    """Raised in place of every disk operation from some step on: clean-up code cannot touch anything either."""


def die() -> None:
    raise Dead


def count_down(step: int, end: Callable[[], object]) -> dict[str, Callable[..., object]]:
    """Versions of the functions of `os` that call `end` instead of operation number `step` and all later ones."""
    left = [step]

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def operation(*args: object, **kwargs: object) -> object:
            if left[0] == 0:
                end()
            left[0] -= 1
            return function(*args, **kwargs)

        return operation

    return {name: counted(getattr(os, name)) for name in STEPS}


def stopped_at(step: int, work: Callable[[], object]) -> bool:
    """Run `work`, in which every disk operation from number `step` on fails; False if it had fewer."""
    with pytest.MonkeyPatch.context() as patch:
        for name, function in count_down(step, die).items():
            patch.setattr(os, name, function)
        try:
            work()
        except Dead:
            return True
    return False


def killed_at(step: int, work: Callable[[], object]) -> bool:
    """Run `work` in a child process that dies just before its disk operation number `step`; False if it had fewer."""

    def counted() -> None:
        for name, function in count_down(step, lambda: os._exit(KILLED)).items():
            setattr(os, name, function)
        work()

    code = in_child(counted)
    assert code in (KILLED, DONE), f"the child failed by itself, exit code {code}"
    return code == KILLED


def killed_after(seconds: float, work: Callable[[], object]) -> bool:
    """Run `work` in a child process that is killed (SIGKILL) after some time; False if it was done before."""
    child = start(work)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)  # not waited for yet, so that no other process can have its number
    code = exit_code(child)
    assert code in (-signal.SIGKILL, DONE), f"the child failed by itself, exit code {code}"
    return code != DONE


def in_child(work: Callable[[], object]) -> int:
    """Run `work` in a child process; its exit code: 1 after an exception, below 0 the signal that ended it."""
    return exit_code(start(work))


def start(work: Callable[[], object]) -> int:
    """Start `work` in a child process and return its number."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(DONE)
    return child


def exit_code(child: int) -> int:
    """Wait for a child process to end."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

"""An engine's tasks are those that are wanted, whatever fails on the way."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from peft_aot.serving import UnknownTask, follower
from peft_aot.serving.follower import Follower
from peft_aot.serving.wanted import RECORD, TasksFolder, Wanted, WantedTask


class Tasks:
    """What a follower needs of an engine: tasks by name, and folders that are broken."""

    def __init__(self) -> None:
        self.tasks: dict[str, str] = {}
        self.broken: set[str] = set()
        self.calls: list[tuple[str, str]] = []

    def _put(self, verb: str, name: str, adapter: str, **hub: Any) -> None:
        self.calls.append((verb, name))
        if adapter in self.broken:
            raise ValueError(f"expected an adapter, got {adapter}")
        self.tasks[name] = adapter + "".join(f"@{value}" for value in hub.values())

    def add_task(self, name: str, adapter: str, **hub: Any) -> None:
        assert name not in self.tasks
        self._put("add", name, adapter, **hub)

    def replace_task(self, name: str, adapter: str, **hub: Any) -> None:
        assert name in self.tasks
        self._put("replace", name, adapter, **hub)

    def remove_task(self, name: str) -> None:
        self.calls.append(("remove", name))
        del self.tasks[name]


@pytest.fixture
def engine() -> Tasks:
    return Tasks()


@pytest.fixture
def folder(tmp_path: Path) -> TasksFolder:
    return TasksFolder(tmp_path)


def change(folder: TasksFolder, how: Callable[[Wanted], Wanted]) -> Wanted:
    with folder.changing() as now:
        folder.write(how(now))
    return folder.read()


def test_all_tasks_are_there_at_once_and_then_the_difference_is_made(engine: Tasks, folder: TasksFolder) -> None:
    change(folder, lambda now: now.with_task("a", "x/a").with_task("b", "x/b", "v1"))
    follows = Follower(engine, folder)  # type: ignore[arg-type]
    assert engine.tasks == {"a": "x/a", "b": "x/b@v1"}
    engine.calls.clear()
    follows.catch_up()
    assert engine.calls == []
    change(folder, lambda now: now.without("a").with_task("b", "x/b", "v2").with_task("c", "x/c"))
    follows.catch_up()
    assert engine.tasks == {"b": "x/b@v2", "c": "x/c"} and follows.version == folder.read().version
    assert sorted(engine.calls) == [("add", "c"), ("remove", "a"), ("replace", "b")]


def test_what_is_loaded_here_is_recorded(engine: Tasks, folder: TasksFolder) -> None:
    follows, other = Follower(engine, folder), Follower(Tasks(), folder)  # type: ignore[arg-type]
    wanted = follows.load("a", "x/a")
    assert wanted == folder.read() and engine.tasks == {"a": "x/a"}
    other.apply(wanted)
    assert other.version == wanted.version
    wanted = other.unload("a")
    follows.apply(wanted)
    assert engine.tasks == {} and folder.read().tasks == {}
    with pytest.raises(UnknownTask):
        follows.unload("a")


def test_what_is_told_late_is_not_done(engine: Tasks, folder: TasksFolder) -> None:
    follows = Follower(engine, folder)  # type: ignore[arg-type]
    old = follows.load("a", "x/a")
    follows.unload("a")
    follows.apply(old)
    assert engine.tasks == {}


def test_a_record_that_a_file_system_shows_late_undoes_nothing(engine: Tasks, folder: TasksFolder) -> None:
    follows = Follower(engine, folder)  # type: ignore[arg-type]
    follows.apply(Wanted(7, {"a": WantedTask("x/a", 7)}))
    change(folder, lambda now: now)  # version 1 again, as another file
    follows.catch_up()
    assert engine.tasks == {"a": "x/a"} and follows.version == 7


def test_what_does_not_load_is_not_recorded(engine: Tasks, folder: TasksFolder) -> None:
    follows = Follower(engine, folder)  # type: ignore[arg-type]
    engine.broken = {"x/a"}
    with pytest.raises(ValueError, match="expected an adapter, got x/a"):
        follows.load("a", "x/a")
    assert folder.read() == Wanted(1, {}) and engine.tasks == {} and follows.failed == {}


def test_what_cannot_be_recorded_is_taken_back(
    engine: Tasks, folder: TasksFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    follows = Follower(engine, folder)  # type: ignore[arg-type]
    follows.load("a", "x/a")

    def full(wanted: Wanted) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(folder, "write", full)
    for name in ("a", "b"):
        with pytest.raises(OSError, match="no space left"):
            follows.load(name, "x/other")
    assert engine.tasks == {"a": "x/a"}


def test_one_broken_adapter_costs_its_own_task_only(
    engine: Tasks, folder: TasksFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine.broken = {"x/a"}
    change(folder, lambda now: now.with_task("a", "x/a").with_task("b", "x/b"))
    follows = Follower(engine, folder)  # type: ignore[arg-type]
    assert engine.tasks == {"b": "x/b"}
    [(name, problem)] = follows.problems(["a", "b", "c"]).items()
    message = (
        "expected the adapter of task 'a' to load, got ValueError: expected an adapter, got x/a; it is tried again"
    )
    assert name == "a" and message in str(problem)
    engine.broken.clear()
    follows.catch_up()
    assert "a" not in engine.tasks, "not at every look"
    monkeypatch.setattr(follower, "RETRY", 0.0)
    follows.catch_up()
    assert engine.tasks == {"a": "x/a", "b": "x/b"} and follows.failed == {}


def test_a_broken_replacement_leaves_the_task_that_was_there(engine: Tasks, folder: TasksFolder) -> None:
    follows = Follower(engine, folder)  # type: ignore[arg-type]
    follows.load("a", "x/a")
    engine.broken = {"x/new"}
    change(folder, lambda now: now.with_task("a", "x/new"))
    follows.catch_up()
    assert engine.tasks == {"a": "x/a"} and "a" in follows.failed
    change(folder, lambda now: now.without("a"))
    follows.catch_up()
    assert engine.tasks == {} and follows.failed == {}


def test_a_damaged_record_changes_nothing_and_is_said_once(
    engine: Tasks, folder: TasksFolder, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    follows = Follower(engine, folder)  # type: ignore[arg-type]
    follows.load("a", "x/a")
    (tmp_path / RECORD).write_text("{")
    with caplog.at_level(logging.WARNING):
        follows.catch_up()
        follows.catch_up()
    assert engine.tasks == {"a": "x/a"} and len(caplog.records) == 1
    assert "the tasks stay as they are: expected the record of tasks in" in caplog.text
    (tmp_path / RECORD).unlink()
    follows.catch_up()
    assert engine.tasks == {"a": "x/a"}


def test_a_thread_follows_until_it_is_stopped(engine: Tasks, folder: TasksFolder) -> None:
    follows = Follower(engine, folder)  # type: ignore[arg-type]
    assert not follows.following
    follows.follow(0.01)
    change(folder, lambda now: now.with_task("a", "x/a"))
    end = time.monotonic() + 10
    while "a" not in engine.tasks and time.monotonic() < end:
        time.sleep(0.01)
    assert engine.tasks == {"a": "x/a"} and follows.following
    follows.stop()
    while follows.following and time.monotonic() < end:
        time.sleep(0.01)
    assert not follows.following

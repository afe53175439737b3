"""A folder of tasks: complete or not at all, changed, gone, broken."""

from __future__ import annotations

import logging
import os
import shutil
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from peft_aot.loading import ADAPTER_CONFIG
from peft_aot.serving.http.health import Readiness
from peft_aot.serving.http.watch import TaskFolder, Watcher, load_folder
from peft_aot.staging import READY, staged
from serving.fake_engine import FakeEngine, save


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine(())


@pytest.fixture
def watched(engine: FakeEngine, tmp_path: Path) -> TaskFolder:
    tasks = TaskFolder(engine, tmp_path)
    tasks.load()
    return tasks


def messages(caplog: Any) -> list[tuple[str, str]]:
    return [
        (record.getMessage(), record.fields["task"]) for record in caplog.records if record.levelno >= logging.WARNING
    ]


def test_the_start_loads_what_is_complete(engine: FakeEngine, tmp_path: Path, caplog: Any) -> None:
    save(tmp_path / "one")
    save(tmp_path / "two", "tokens")
    save(tmp_path / "broken", weights=b"broken")
    save(tmp_path / ".hidden")
    save(tmp_path / "no-weights")
    (tmp_path / "no-weights" / "adapter_model.safetensors").unlink()
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    assert load_folder(engine, tmp_path) == 2
    assert {name: task.kind for name, task in engine.tasks.items()} == {"one": "single_label", "two": "tokens"}
    assert messages(caplog) == [
        ("a task could not be loaded", "broken"),
        ("a folder is no task", "empty"),
        ("a folder is no task", "no-weights"),
    ]


def test_what_a_killed_save_left_is_finished_or_left_out(engine: FakeEngine, tmp_path: Path) -> None:
    final = tmp_path / "final"  # killed after the configuration had been moved in
    save(final, "regression")
    save(final / READY, "tokens", b"new weights")
    os.replace(final / READY / ADAPTER_CONFIG, final / ADAPTER_CONFIG)
    early = tmp_path / "early"  # killed before
    save(early / ".peft_aot_writing.host.1.abcd")
    assert load_folder(engine, tmp_path) == 1
    assert engine.tasks["final"].kind == "tokens"
    assert (final / "adapter_model.safetensors").read_bytes() == b"new weights"


def test_a_new_task_is_served_once_it_is_stable(engine: FakeEngine, watched: TaskFolder, tmp_path: Path) -> None:
    save(tmp_path / "new")
    watched.follow()
    assert not engine.tasks
    (tmp_path / "new" / "adapter_model.safetensors").write_bytes(b"weights that still grow")
    watched.follow()
    assert not engine.tasks
    watched.follow()
    watched.follow()
    assert engine.calls == [("add", "new")]


def test_half_a_task_is_not_served(engine: FakeEngine, watched: TaskFolder, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "adapter_model.safetensors").write_bytes(b"weights")
    for _ in range(3):
        watched.follow()
    assert engine.calls == []
    save(tmp_path / "new")
    for _ in range(3):
        watched.follow()
    assert engine.calls == [("add", "new")]


def test_a_save_of_this_package_is_taken_over_whole(engine: FakeEngine, watched: TaskFolder, tmp_path: Path) -> None:
    with staged(tmp_path / "new", ADAPTER_CONFIG) as folder:
        save(folder)
        for _ in range(3):
            watched.follow()
        assert engine.calls == []
    for _ in range(3):
        watched.follow()
    assert engine.calls == [("add", "new")]


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "aot_table.safetensors", "head.json"])
def test_a_changed_task_is_replaced(engine: FakeEngine, tmp_path: Path, name: str) -> None:
    save(tmp_path / "one")
    watched = TaskFolder(engine, tmp_path)
    watched.load()
    (tmp_path / "one" / name).write_bytes(b"something else")
    for _ in range(4):
        watched.follow()
    assert engine.calls == [("add", "one"), ("replace", "one")]


def test_a_task_that_goes_is_removed(engine: FakeEngine, tmp_path: Path) -> None:
    save(tmp_path / "one")
    save(tmp_path / "two")
    watched = TaskFolder(engine, tmp_path)
    watched.load()
    shutil.rmtree(tmp_path / "one")
    watched.follow()
    assert set(engine.tasks) == {"one", "two"}  # a folder that is being replaced is away for a moment
    watched.follow()
    assert set(engine.tasks) == {"two"}
    save(tmp_path / "one")
    watched.follow()
    watched.follow()
    assert engine.calls[-2:] == [("remove", "one"), ("add", "one")]


def test_a_task_unloaded_by_somebody_else_stays_so_until_it_changes(engine: FakeEngine, tmp_path: Path) -> None:
    save(tmp_path / "one")
    watched = TaskFolder(engine, tmp_path)
    watched.load()
    engine.remove_task("one")
    watched.follow()
    assert "one" not in engine.tasks
    save(tmp_path / "one", weights=b"others")
    watched.follow()
    watched.follow()
    assert "one" in engine.tasks
    assert engine.calls[-1] == ("add", "one"), "there is none to replace"
    engine.remove_task("one")
    shutil.rmtree(tmp_path / "one")
    watched.follow()
    watched.follow()


def test_a_broken_task_is_told_once_and_tried_again_when_it_changes(
    engine: FakeEngine, watched: TaskFolder, tmp_path: Path, caplog: Any
) -> None:
    save(tmp_path / "one", weights=b"broken")
    for _ in range(5):
        watched.follow()
    assert messages(caplog) == [("a task could not be loaded", "one")]
    assert engine.calls == [("add", "one")]
    save(tmp_path / "one")
    for _ in range(3):
        watched.follow()
    assert "one" in engine.tasks


def test_a_task_that_breaks_is_served_as_it_was(engine: FakeEngine, tmp_path: Path, caplog: Any) -> None:
    save(tmp_path / "one", "tokens")
    watched = TaskFolder(engine, tmp_path)
    watched.load()
    save(tmp_path / "one", weights=b"broken")
    for _ in range(3):
        watched.follow()
    (tmp_path / "one" / ADAPTER_CONFIG).unlink()
    for _ in range(3):
        watched.follow()
    assert engine.tasks["one"].kind == "tokens"
    assert messages(caplog) == [("a task could not be loaded", "one"), ("a folder is no task", "one")]


def test_a_name_that_is_taken_by_a_loaded_task(
    engine: FakeEngine, watched: TaskFolder, tmp_path: Path, caplog: Any
) -> None:
    other = save(tmp_path.parent / "elsewhere", "tokens")
    engine.add_task("one", other)
    save(tmp_path / "one")
    for _ in range(3):
        watched.follow()
    assert engine.tasks["one"].kind == "tokens"
    assert messages(caplog) == [("a folder's name is taken by a task that a call has loaded", "one")], "told once"
    engine.remove_task("one")
    watched.follow()
    assert engine.tasks["one"].kind == "single_label", "the name is free"
    engine.replace_task("one", other)
    save(tmp_path / "one", weights=b"others")
    for _ in range(3):
        watched.follow()
    assert len(messages(caplog)) == 2, "taken again, told again"


def test_a_task_that_a_call_has_replaced_does_not_go_with_its_folder(
    engine: FakeEngine, watched: TaskFolder, tmp_path: Path
) -> None:
    other = save(tmp_path.parent / "elsewhere", "tokens")
    save(tmp_path / "one")
    for _ in range(2):
        watched.follow()
    engine.replace_task("one", other)
    shutil.rmtree(tmp_path / "one")
    for _ in range(3):
        watched.follow()
    assert engine.tasks["one"].kind == "tokens"


def test_a_folder_is_found_by_a_relative_path(
    engine: FakeEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path / "tasks" / "one")
    os.symlink("one", tmp_path / "tasks" / "two")
    monkeypatch.chdir(tmp_path)
    assert load_folder(engine, Path("tasks")) == 2


def test_a_name_that_nobody_could_ask_for(engine: FakeEngine, tmp_path: Path, caplog: Any) -> None:
    save(tmp_path / ("x" * 129))
    save(tmp_path / ("y" * 128))
    assert load_folder(engine, tmp_path) == 1
    assert messages(caplog) == [("a folder is no task", "x" * 129)]


def test_loading_ends_when_it_is_stopped(engine: FakeEngine, tmp_path: Path) -> None:
    for number in range(3):
        save(tmp_path / str(number))
    stopped = threading.Event()
    stopped.set()
    assert TaskFolder(engine, tmp_path).load(stopped) == 0


def test_links_out_of_the_folder_are_not_followed(tmp_path: Path, engine: FakeEngine) -> None:
    outside = save(tmp_path / "outside")
    inside = tmp_path / "tasks"
    save(inside / "one")
    os.symlink(outside / "adapter_model.safetensors", inside / "one" / "more")
    os.symlink(outside, inside / "two")
    save(inside / "three")
    os.symlink(inside / "three", inside / "four")
    assert load_folder(engine, inside) == 2
    assert set(engine.tasks) == {"three", "four"}


def test_a_folder_that_cannot_be_read_changes_nothing(engine: FakeEngine, tmp_path: Path, caplog: Any) -> None:
    save(tmp_path / "tasks" / "one")
    watched = TaskFolder(engine, tmp_path / "tasks")
    watched.load()
    (tmp_path / "tasks").rename(tmp_path / "away")
    for _ in range(3):
        watched.follow()
    assert "one" in engine.tasks
    assert "the folder of tasks cannot be read" in caplog.text
    (tmp_path / "away").rename(tmp_path / "tasks")
    for _ in range(3):
        watched.follow()
    assert engine.calls == [("add", "one")]


def test_the_thread_follows_and_ends(engine: FakeEngine, tmp_path: Path) -> None:
    readiness = Readiness()
    watcher = Watcher(TaskFolder(engine, tmp_path), 0.02, readiness)
    watcher.start()
    save(tmp_path / "one")
    end = time.monotonic() + 10
    while not (readiness.loaded and "one" in engine.tasks):
        assert time.monotonic() < end
        time.sleep(0.01)
    watcher.stop()
    save(tmp_path / "two")
    time.sleep(0.1)
    assert "two" not in engine.tasks

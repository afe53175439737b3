"""The record of tasks: one at a time changes it, and whatever happens it is whole."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from peft_aot.serving import UnknownTask, wanted
from peft_aot.serving.wanted import RECORD, TasksFolder, Wanted, WantedTask


def make_adapters(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        (folder / name / "adapter_config.json").write_text("{}")
    return folder


def test_the_first_to_open_a_folder_wants_every_adapter_in_it(tmp_path: Path) -> None:
    make_adapters(tmp_path, "trec", "rte")
    (tmp_path / "notes").mkdir()
    assert TasksFolder(tmp_path).read() == Wanted(1, {"rte": WantedTask("rte", 1), "trec": WantedTask("trec", 1)})
    make_adapters(tmp_path, "later")
    assert set(TasksFolder(tmp_path).read().tasks) == {"rte", "trec"}, "from then on the record says it all"


def test_a_task_that_is_wanted_anew_is_another(tmp_path: Path) -> None:
    folder = TasksFolder(make_adapters(tmp_path, "trec"))
    mark = folder.mark()
    with folder.changing() as now:
        folder.write(now.with_task("trec", "trec").with_task("hub", "org/name", "v2"))
    assert folder.read() == Wanted(3, {"trec": WantedTask("trec", 2), "hub": WantedTask("org/name", 3, "v2")})
    assert folder.mark() != mark and folder.mark() == folder.mark()
    assert folder.read().without("trec").tasks.keys() == {"hub"}


def test_adapters_are_looked_for_below_the_folder_first(tmp_path: Path) -> None:
    folder = TasksFolder(make_adapters(tmp_path, "trec"))
    assert folder.locate("trec") == str(tmp_path / "trec")
    assert folder.locate("org/name") == "org/name" and folder.locate(str(tmp_path)) == str(tmp_path)


def test_changes_from_many_sides_are_all_kept(tmp_path: Path) -> None:
    def add(number: int) -> None:
        folder = TasksFolder(tmp_path)  # a replica's own
        for part in range(5):
            with folder.changing() as now:
                folder.write(now.with_task(f"{number}-{part}", "there"))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(add, range(4)))
    end = TasksFolder(tmp_path).read()
    assert end.version == 21 and len(end.tasks) == 20
    assert sorted(task.number for task in end.tasks.values()) == list(range(2, 22))


def test_a_write_that_fails_leaves_the_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = TasksFolder(make_adapters(tmp_path, "trec"))
    before = (tmp_path / RECORD).read_bytes()

    def full(self: Path, *arguments: object, **more: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="no space left"), folder.changing() as now:
        folder.write(now.without("trec"))
    assert (tmp_path / RECORD).read_bytes() == before


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected a folder of adapters, got no folder at .*; make it"):
        TasksFolder(tmp_path / "nowhere")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"version": 1}', '{"version": 1, "tasks": {"a": {"adaptr": "a"}}}'])
def test_a_damaged_record(tmp_path: Path, text: str) -> None:
    folder = TasksFolder(tmp_path)
    (tmp_path / RECORD).write_text(text)
    with pytest.raises(ValueError, match=r"expected the record of tasks in .*tasks.json, got \w+: .*; restore it, or"):
        folder.read()


def test_a_task_that_nobody_wants() -> None:
    with pytest.raises(UnknownTask, match="expected the name of a task to unload, got 'trek'; did you mean 'trec'?"):
        Wanted(1, {"trec": WantedTask("trec", 1)}).without("trek")
    with pytest.raises(UnknownTask, match="got 'trek'; there are no tasks"):
        Wanted(1, {}).without("trek")


def test_another_change_that_does_not_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wanted, "PATIENCE", 0.1)
    folder = TasksFolder(tmp_path)
    with (
        FileLock(tmp_path / f"{RECORD}.lock"),
        pytest.raises(TimeoutError, match="expected .* to be free within 0.1 s, got another change .*; try again"),
        folder.changing(),
    ):
        pass

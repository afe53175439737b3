"""Files that are being written: whose they are, and what is left of them."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from interruption import exit_code, in_child, start
from peft_aot import unfinished
from peft_aot.unfinished import discard_abandoned, replacing, scratch_folder

HOST = socket.gethostname()


def dead() -> int:
    """The number of a process that is no more."""
    child = start(lambda: None)
    exit_code(child)
    return child


def test_what_dead_processes_of_this_machine_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    gone = [f".t.{HOST}.{dead()}.00ff", f".t.{HOST}.{dead()}.00ff.abandoned", f".t.{HOST}.{dead()}.folder"]
    kept = [
        f".t.{HOST}.{os.getpid()}.00ff",  # alive
        f".t.elsewhere.{dead()}.00ff",
        f".t.{HOST}.example.{dead()}.00ff",  # another machine, whose name begins as this one's
        f".u.{HOST}.{dead()}.00ff",
        f".t.{HOST}.{dead()}.00ff.two.more",
        f".t.{HOST}",
        "t",
    ]
    for name in (*gone[:2], *kept):
        (tmp_path / name).touch()
    (tmp_path / gone[2]).mkdir()
    (tmp_path / gone[2] / "file").touch()
    discard_abandoned(tmp_path, ".t")
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_a_folder_that_cannot_be_listed_is_left_alone(tmp_path: Path) -> None:
    discard_abandoned(tmp_path / "none", ".t")


def test_names_differ_within_a_process(tmp_path: Path) -> None:
    assert len({unfinished.unfinished(tmp_path, ".t") for _ in range(100)}) == 100


def test_a_file_is_replaced_once_it_is_flushed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t"
    path.write_text("old", encoding="utf-8")
    flushed: list[tuple[str, str]] = []
    monkeypatch.setattr(unfinished, "flush", lambda p: flushed.append((p.read_text("utf-8"), path.read_text("utf-8"))))
    with replacing(path) as partial:
        partial.write_text("new", encoding="utf-8")
    assert flushed == [("new", "old")] and path.read_text(encoding="utf-8") == "new"
    assert os.listdir(tmp_path) == ["t"]


def test_an_exception_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_text("old", encoding="utf-8")
    with pytest.raises(RuntimeError, match="enough"), replacing(path) as partial:
        partial.write_text("half", encoding="utf-8")
        raise RuntimeError("enough")
    assert path.read_text(encoding="utf-8") == "old" and os.listdir(tmp_path) == ["t"]


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    path = tmp_path / "t"

    def die() -> None:
        with replacing(path) as partial, scratch_folder(tmp_path) as scratch:
            partial.write_text("half", encoding="utf-8")
            (scratch / "file").touch()
            os._exit(9)

    assert in_child(die) == 9 and len(os.listdir(tmp_path)) == 2
    with replacing(path) as partial, scratch_folder(tmp_path):
        partial.write_text("new", encoding="utf-8")
    assert os.listdir(tmp_path) == ["t"]

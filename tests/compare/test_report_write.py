"""The report's files: all of them, whole or not at all, and without pictures where matplotlib is missing."""

from __future__ import annotations

import csv
import os
import sys
from pathlib import Path

import pytest

from compare.summaries import finished, unfinished
from peft_aot.compare.report import figures, write
from peft_aot.compare.report.write import write_report

TEXTS = ["table.md", "table.tex", "table.csv", "report.html"]
PICTURES = [f"{name}.{kind}" for name in ("evp", "bytes", "ratio") for kind in ("png", "svg")]


def names(paths: tuple[Path, ...]) -> list[str]:
    return [path.name for path in paths]


def test_all_files_are_written_and_say_what_is_partial(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="pictures need matplotlib")
    folder = tmp_path / "deep" / "report"
    paths = write_report(unfinished(9, 6), folder)
    assert names(paths) == [*TEXTS, *PICTURES]
    assert sorted(os.listdir(folder)) == sorted(names(paths))  # no temporary file is left
    contents = {path.name: path.read_bytes() for path in paths}
    for name in TEXTS:
        assert b"partial" in contents[name]
        assert b"is left out of the macro average: no method has finished it" in contents[name]
    assert b"<!-- boolq (partial) -->" in contents["evp.svg"]
    for name in PICTURES:
        assert contents[name].startswith(b"\x89PNG" if name.endswith("png") else b"<?xml")
    assert contents["report.html"].count(b"<svg ") == 3
    assert len(list(csv.reader(contents["table.csv"].decode().splitlines()))) == 7
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in paths)


def test_a_second_report_replaces_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "plots_available", lambda: False)
    write_report(finished(1, 2), tmp_path)
    before = (tmp_path / "table.md").read_text()
    write_report(finished(2, 3), tmp_path)
    assert before != (tmp_path / "table.md").read_text()
    assert sorted(os.listdir(tmp_path)) == sorted(TEXTS)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "plots_available", lambda: False)
    write_report(finished(1, 2), tmp_path)
    before = {name: (tmp_path / name).read_bytes() for name in TEXTS}

    def stop(source: str, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", stop)
    with pytest.raises(KeyboardInterrupt):
        write_report(finished(2, 3), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_without_matplotlib_there_is_a_page_without_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)  # as if it were not installed
    assert not figures.plots_available()
    paths = write_report(finished(1, 2), tmp_path)
    assert names(paths) == TEXTS
    page = (tmp_path / "report.html").read_text()
    assert "<svg" not in page
    assert "matplotlib is not installed" in page

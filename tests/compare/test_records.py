"""Result files: what is written is read again; a torn line costs itself and nothing else."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from peft_aot.compare.records import RecordFile, RunRecord
from records import record


def test_what_is_appended_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "runs.jsonl"
    first, second = record("a", 0.5), record("b", None, status="failed", reason="ö: expected <finite>")
    file = RecordFile(path, RunRecord)
    assert (file.records, file.notes) == ([], [])
    file.append(first)
    file.append(second)
    again = RecordFile(path, RunRecord)
    assert again.records == file.records == [first, second]
    assert again.notes == []
    assert path.read_bytes().count(b"\n") == 2


@pytest.mark.parametrize("torn", [b'{"task": "a", "sc', b"\xff\xfe{", b'{"task": "a"}', b'{"x": 1}', b"[1, 2]", b"3"])
def test_a_broken_last_line_is_kept_ignored_and_told_of(tmp_path: Path, torn: bytes) -> None:
    path = tmp_path / "runs.jsonl"
    RecordFile(path, RunRecord).append(record("a", 0.5))
    whole = path.read_bytes()
    path.write_bytes(whole + torn)
    file = RecordFile(path, RunRecord)
    assert [entry.task for entry in file.records] == ["a"]
    assert len(file.notes) == 1
    assert file.notes[0].startswith(f"line 2 of {path} is not a whole RunRecord")
    file.append(record("b", 0.25))
    assert path.read_bytes().startswith(whole + torn + b"\n")
    assert [entry.task for entry in RecordFile(path, RunRecord).records] == ["a", "b"]


def test_a_line_torn_at_its_very_end_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    RecordFile(path, RunRecord).append(record("a", 0.5))
    path.write_bytes(path.read_bytes()[:-1])  # only the line's end is missing
    file = RecordFile(path, RunRecord)
    assert [entry.task for entry in file.records] == ["a"]
    file.append(record("b", 0.5))
    assert [entry.task for entry in RecordFile(path, RunRecord).records] == ["a", "b"]


def test_json_has_no_nan(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        RecordFile(tmp_path / "runs.jsonl", RunRecord).append(record("a", float("nan")))
    assert not (tmp_path / "runs.jsonl").exists()


def test_a_run_is_known_by_what_decides_it() -> None:
    one = record("a", 0.5).run
    assert dataclasses.replace(one, trial=7).key == one.key
    assert dataclasses.replace(one, settings=dict(reversed(one.settings.items()))).key == one.key
    for change in ({"task": "b"}, {"method": "lora"}, {"seed": 1}, {"settings": {"rank": 3}}):
        assert dataclasses.replace(one, **change).key != one.key


def test_lines_without_a_configuration_are_read(tmp_path: Path) -> None:
    path = tmp_path / "runs.jsonl"
    RecordFile(path, RunRecord).append(dataclasses.replace(record("a", 0.5), config={"r": 8}))
    values = json.loads(path.read_text(encoding="utf-8"))
    assert RecordFile(path, RunRecord).records[0].config == values.pop("config") == {"r": 8}
    path.write_text(json.dumps(values) + "\n", encoding="utf-8")
    file = RecordFile(path, RunRecord)
    assert file.notes == [] and file.records[0].config == {}

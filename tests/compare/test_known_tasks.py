"""Comparisons on a known task out of a folder: what cannot be done, and rows that change."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from peft_aot.compare import CompareOptions, compare
from peft_aot.compare.records import RecordFile, RunRecord
from tiny_text import write_backbone


def copa(root: Path, choices: tuple[str, str] = ("a cat", "a bird")) -> Path:
    """Write a small COPA below `root`, of which training rows are missing."""
    folder = root / "super_glue" / "copa"
    folder.mkdir(parents=True, exist_ok=True)
    prompt = {"premise": "the dog is red", "choice1": choices[0], "choice2": choices[1], "question": "cause"}
    rows = [{**prompt, "label": index % 2} for index in range(8)]
    for split in ("train_partial", "validation"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")
    return root


@pytest.fixture
def choosing(tmp_path: Path) -> CompareOptions:
    return CompareOptions(
        model=str(write_backbone(tmp_path / "bb")),
        output=tmp_path / "out",
        tasks=("copa",),
        methods=("head", "prefix"),
        data_dir=copa(tmp_path / "hub"),
        trials=1,
        seeds=1,
        epochs=1,
        precision="fp32",
        timing_rounds=2,
    )


def lines(options: CompareOptions) -> list[RunRecord]:
    return RecordFile(options.output / "runs.jsonl", RunRecord).records


def test_multiple_choice_is_not_asked_of_methods_that_cannot(choosing: CompareOptions) -> None:
    result = compare(choosing)
    assert [run.method for run in lines(choosing)] == ["head"]
    assert [row.cells[0].status for row in result.summary.methods] == ["done", "not applicable"]
    assert "copa (partial)" in (choosing.output / "report" / "table.md").read_text(encoding="utf-8")
    assert json.loads((choosing.output / "runs.jsonl").read_text(encoding="utf-8"))["partial"] == ["train"]
    assert not (choosing.output / "costs.jsonl").exists()  # no text or pair to time on


def test_nothing_that_can_be_done_is_refused(choosing: CompareOptions) -> None:
    message = (
        r"expected a method that can do one of the tasks copa, got prefix \(expected a method that PEFT supports for"
    )
    with pytest.raises(ValueError, match=message):
        compare(dataclasses.replace(choosing, methods=("prefix",)))
    assert not choosing.output.exists()


def test_other_rows_behind_the_same_folder_are_refused(choosing: CompareOptions, tmp_path: Path) -> None:
    choosing = dataclasses.replace(choosing, methods=("head",), timing_rounds=0)
    compare(choosing)
    file = choosing.output / "runs.jsonl"
    before = file.read_text(encoding="utf-8")
    assert len(lines(choosing)[0].protocol["rows"]) == 16
    compare(choosing)
    copa(tmp_path / "hub", ("a cat", "a horse"))
    for more in ({}, {"report_only": True}):
        with pytest.raises(
            ValueError, match="expected the rows of copa as in the runs in .*, got others; read the same"
        ):
            compare(choosing, **more)
    line = json.loads(before)
    del line["protocol"]["rows"]  # as earlier versions wrote it
    file.write_text(json.dumps(line) + "\n", encoding="utf-8")
    compare(choosing)
    assert len(lines(choosing)) == 1, "nothing has run again"

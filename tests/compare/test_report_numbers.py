"""The CSV file gives back the very numbers."""

from __future__ import annotations

import csv
import io
import json

import pytest

from compare.summaries import finished, nasty, summary, unfinished, unstarted
from peft_aot.compare.report.numbers import CELL_FIELDS, FIELDS, JSON_FIELDS, numbers_csv
from peft_aot.compare.summary import Summary


def read(comparison: Summary) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(numbers_csv(comparison), newline="")))


def same(text: str, value: object) -> bool:
    """Whether a field holds a value, to the last bit."""
    if value is None:
        return text == ""
    return float(text) == value if isinstance(value, (int, float)) else text == value


@pytest.mark.parametrize("comparison", [finished(), unfinished(), unstarted(), finished(1, 1), nasty()])
def test_every_number_parses_back_exactly(comparison: Summary) -> None:
    rows = read(comparison)
    assert len(rows) == len(comparison.methods)
    for row, method in zip(rows, comparison.methods, strict=True):
        assert (row["method"], row["title"], row["group"]) == (method.name, method.title, method.group)
        for name in FIELDS:
            assert same(row[name], getattr(method, name)), name
        assert json.loads(row["macro_tasks"]) == list(method.macro_tasks)
        for task, cell in zip(comparison.tasks, method.cells, strict=True):
            for name in CELL_FIELDS:
                assert same(row[f"{task.label}: {name}"], getattr(cell, name)), name
            for name in JSON_FIELDS:
                value = getattr(cell, name)
                text = row[f"{task.label}: {name}"]
                assert (json.loads(text) if text else None) == (list(value) if isinstance(value, tuple) else value)
        assert json.loads(row["notes"]) == list(comparison.notes)


def test_columns_are_named_once() -> None:
    header = next(csv.reader(io.StringIO(numbers_csv(unfinished()))))
    assert len(set(header)) == len(header)
    assert header[:4] == ["method", "title", "group", "macro"]
    assert "boolq (partial): median" in header
    assert "cola: best_settings" in header
    assert header[-1] == "notes"


def test_no_methods_leave_the_header() -> None:
    assert numbers_csv(summary([], [])).count("\n") == 1

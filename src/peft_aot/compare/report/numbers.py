"""The numbers behind the table as CSV: unrounded, one row per method, one meaning per column."""

from __future__ import annotations

import csv
import io
import json
from typing import Any

from peft_aot.compare.summary import Cell, MethodRow, Summary

FIELDS = (
    "macro", "trained_parameters", "stored_bytes", "peak_memory_bytes", "train_seconds", "ratio", "ratio_low",
    "ratio_high", "variant", "mixes",
)  # fmt: skip
"""Attributes of `MethodRow` that are columns."""
CELL_FIELDS = ("median", "low", "high", "status", "reason", "failed")
"""Attributes of `Cell` that are columns; its lists and settings follow as JSON."""
JSON_FIELDS = ("best_settings", "seed_scores", "trials", "evp")


def numbers_csv(summary: Summary) -> str:
    """Write a comparison as CSV.

    Columns are method, title, group, those of `FIELDS`, macro_tasks (JSON); then per task, each with the task's label
    and a colon in front, those of `CELL_FIELDS` and `JSON_FIELDS`; at last the notes, as a JSON list that is the same
    in every row, so that no row loses them. Scores are in [-1, 1], sizes in bytes, times in seconds. What is not known
    is empty.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    parts = [f"{task.label}: {name}" for task in summary.tasks for name in (*CELL_FIELDS, *JSON_FIELDS)]
    writer.writerow(["method", "title", "group", *FIELDS, "macro_tasks", *parts, "notes"])
    for row in summary.methods:
        writer.writerow(_row(row, summary.notes))
    return file.getvalue()


def _row(row: MethodRow, notes: tuple[str, ...]) -> list[Any]:
    values = [row.name, row.title, row.group, *(getattr(row, name) for name in FIELDS), _json(row.macro_tasks)]
    for cell in row.cells:
        values += _cell(cell)
    return [*values, _json(notes)]


def _cell(cell: Cell) -> list[Any]:
    return [
        *(getattr(cell, name) for name in CELL_FIELDS),
        *(_json(getattr(cell, name)) for name in JSON_FIELDS),
    ]


def _json(value: Any) -> str:
    return "" if value is None else json.dumps(value, ensure_ascii=False)

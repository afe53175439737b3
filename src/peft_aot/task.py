"""What a task is: where its rows are, how they read, what they are scored by.

Frozen data only. Knows nothing of files, tokenizers and models: `data` reads the rows, `metrics` computes the scores.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from peft_aot.rendering import Render

Kind: TypeAlias = Literal["classification", "regression", "multiple_choice"]


@dataclass(frozen=True)
class HubSource:
    """Rows on the hub, and below `--data-dir` in the same layout.

    Attributes:
        repo: Data set id on the hub.
        folder: Folder below `--data-dir` that holds `<split>-*.parquet`.
        config: Configuration of the data set.
        revision: Branch to read; None for the main one.
        renames: (column on the hub, column of ours), where the hub's names differ.
        validation: The hub's name for the split that scores are computed on.
        holdout: If the hub has no such split: every holdout-th row of train (row 0 first) is validation.
    """

    repo: str
    folder: str
    config: str | None = None
    revision: str | None = None
    renames: tuple[tuple[str, str], ...] = ()
    validation: str = "validation"
    holdout: int | None = None


@dataclass(frozen=True)
class LocalFiles:
    """An own task: files with a text column, maybe a second one, and a label column.

    Attributes:
        train: CSV, TSV, JSONL or parquet file to train on.
        validation: File that scores are computed on; None holds out every tenth row of `train`.
        text_column: Column of the text.
        pair_column: Column of the second text, or None.
        label_column: Column of the label.
        kind: "classification" (labels are names or ids) or "regression" (labels are numbers).
    """

    train: Path
    validation: Path | None = None
    text_column: str = "text"
    pair_column: str | None = None
    label_column: str = "label"
    kind: Literal["classification", "regression"] = "classification"


LOCAL_HOLDOUT = 10


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        name: What `--task` takes.
        source: Where the rows are.
        columns: Columns that a row must have.
        labels: Label names in the order of their ids; empty for regression.
        metrics: Names of the metrics (`peft_aot.metrics`); the mean of what they return is the task's score.
        render: Turns a row into items.
        kind: What the head answers.
        label_column: Column of the label.
        max_length: Longest input in tokens if the user gives none.
    """

    name: str
    source: HubSource | LocalFiles
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    render: Render
    kind: Kind = "classification"
    label_column: str = "label"
    max_length: int = 128

    @property
    def text_columns(self) -> tuple[str, ...]:
        """The columns that must not be empty: everything a row must have but its label."""
        return tuple(column for column in self.columns if column != self.label_column)

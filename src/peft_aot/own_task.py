"""Tasks from a name, from local files, or from the task card of a trained adapter."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from peft_aot.data import TRAIN, check_columns, load_table
from peft_aot.labels import is_empty, label_name
from peft_aot.rendering import Columns
from peft_aot.task import LocalFiles, Task
from peft_aot.task_card import TaskCard
from peft_aot.tasks import get_task


def own_task(files: LocalFiles, labels: tuple[str, ...] = ()) -> Task:
    """Make a task of local files; the label names are those of the training file, sorted, unless they are given.

    Raises:
        FileNotFoundError, ValueError: The training file cannot be used (see `load_split`).
    """
    render = Columns(files.text_column, files.pair_column, files.label_column)
    texts = (files.text_column,) if files.pair_column is None else (files.text_column, files.pair_column)
    metrics = ("pearson", "spearman") if files.kind == "regression" else ("accuracy",)
    task = Task(
        files.train.stem, files, (*texts, files.label_column), labels, metrics, render, files.kind, files.label_column
    )
    if files.kind == "regression" or labels:
        return task
    table = load_table(task, TRAIN)
    check_columns(table, task.columns)
    raw = [row.get(files.label_column) for row in table.rows]
    names = {label_name(value) for value in raw if not is_empty(value)}
    if len(names) < 2:
        raise ValueError(
            f"expected at least 2 different labels in {table.origin}, got {len(names)} in column "
            f"{files.label_column!r}; check --label-column, or pass regression as kind"
        )
    numeric = all(name.lstrip("-").isdigit() for name in names)
    return replace(task, labels=tuple(sorted(names, key=int if numeric else str)))


def open_task(task: str | LocalFiles) -> Task:
    """Look a known task up, or make one of local files."""
    return get_task(task) if isinstance(task, str) else own_task(task)


def task_of(card: TaskCard, file: Path | None = None) -> Task:
    """Make the task that an adapter was trained for, with the label names it learned.

    Args:
        card: The task card beside the adapter.
        file: Local file to score on instead of the one the card names.
    """
    if file is None and card.own_files is None:
        return get_task(card.task)
    if card.kind == "multiple_choice" or len(card.text_columns) > 2:
        raise ValueError(
            f"expected a task that reads one text or a pair from a file, got {card.task!r}; pass --data-dir instead"
        )
    trained_on, scored_on = (Path(name) for name in card.own_files or (str(file), str(file)))
    files = LocalFiles(
        train=trained_on,
        validation=file or (None if scored_on == trained_on else scored_on),
        text_column=card.text_columns[0],
        pair_column=card.text_columns[1] if len(card.text_columns) == 2 else None,
        label_column=card.label_column,
        kind="regression" if card.kind == "regression" else "classification",
    )
    return replace(own_task(files, card.labels), name=card.task, metrics=card.metrics)

"""Splits of a task: rows found on the hub, in a hub-layout folder or in local files, checked, rendered, labelled.

Everything wrong with the data is said here, before a model is loaded or a file is written.
Knows nothing of tokenizers and models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets

from peft_aot.labels import is_empty, to_class_id, to_number
from peft_aot.readers import Table, join_tables, read_table
from peft_aot.rendering import Item
from peft_aot.suggestions import did_you_mean
from peft_aot.task import LOCAL_HOLDOUT, HubSource, LocalFiles, Task

TRAIN = "train"
VALIDATION = "validation"


@dataclass(frozen=True)
class Split:
    """Rendered, labelled items of one split.

    Attributes:
        name: "train", "validation" or another split of the source.
        items: What the model answers; labels are class ids, or numbers for regression.
        origin: File, folder or hub id that the rows came from.
        partial: Whether rows are missing, in the source or by a limit: a score on such a split is not the official one.
    """

    name: str
    items: tuple[Item, ...]
    origin: str
    partial: bool


def check_columns(table: Table, columns: Sequence[str]) -> None:
    """Refuse a table that lacks a column.

    Raises:
        ValueError: A column is missing; the message names the closest one there is.
    """
    for column in columns:
        if column not in table.columns:
            raise ValueError(
                f"expected a column {column!r} in {table.origin}, got {', '.join(table.columns) or 'no columns'}; "
                f"{did_you_mean(column, table.columns) if table.columns else 'add a header line'}"
            )


def _find_shards(source: HubSource, split: str, data_dir: Path) -> tuple[list[Path], bool]:
    folder = data_dir / source.folder
    if not folder.is_dir():
        raise FileNotFoundError(
            f"expected a folder {folder}, got none; pass the --data-dir that holds {source.folder}/"
        )
    for name in dict.fromkeys((split, source.validation if split == VALIDATION else split)):
        for stem, partial in ((name, False), (f"{name}_partial", True)):
            if shards := sorted(folder.glob(f"{stem}-*.parquet")):
                return shards, partial
    present = sorted({path.name.split("-")[0] for path in folder.glob("*.parquet")})
    raise FileNotFoundError(
        f"expected {split}-*.parquet in {folder}, got {', '.join(present) or 'no parquet files'}; "
        f"add the {split} split or leave --data-dir out to read it from the hub"
    )


def _load_from_hub(source: HubSource, split: str) -> Table:
    name = source.validation if split == VALIDATION else split
    if split == VALIDATION and source.holdout is not None:
        name = TRAIN
    try:
        loaded = datasets.load_dataset(source.repo, source.config, split=name, revision=source.revision)
    except (OSError, ValueError, RuntimeError) as error:  # ConnectionError and DatasetNotFoundError are OSErrors
        raise ConnectionError(
            f"expected the split {name!r} of the data set {source.repo!r} from the hub, got "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no reason'}; pass "
            f"--data-dir DIR with DIR/{source.folder}/{split}-00000-of-00001.parquet"
        ) from error
    for theirs, ours in source.renames:
        if theirs in loaded.column_names and ours not in loaded.column_names:
            loaded = loaded.rename_column(theirs, ours)
    rows: list[dict[str, Any]] = loaded.to_list()
    places = tuple(f"row {index}" for index in range(len(rows)))
    return Table(rows, tuple(loaded.column_names), source.repo, places)


def _hold_out(table: Table, split: str, every: int) -> Table:
    """Keep every `every`-th row for validation, the others for training."""
    kept = [index for index in range(len(table.rows)) if (index % every == 0) == (split == VALIDATION)]
    return replace(table, rows=[table.rows[i] for i in kept], places=tuple(table.places[i] for i in kept))


def load_table(task: Task, split: str, data_dir: Path | None = None) -> Table:
    """Find and read the raw rows of one split; see `load_split` for the errors."""
    source = task.source
    if isinstance(source, HubSource):
        if data_dir is not None:
            shards, partial = _find_shards(source, split, data_dir)
            return replace(join_tables([read_table(shard) for shard in shards]), partial=partial)
        table = _load_from_hub(source, split)
        return table if source.holdout is None else _hold_out(table, split, source.holdout)
    if split == VALIDATION and source.validation is not None:
        return read_table(source.validation)
    table = read_table(source.train)
    return table if source.validation is not None else _hold_out(table, split, LOCAL_HOLDOUT)


def _check_texts(table: Table, task: Task) -> None:
    # Official sets hold a few empty second texts (QQP), so only own files are refused for single empty cells.
    for index, row in enumerate(table.rows):
        empty = [column for column in task.text_columns if is_empty(row.get(column))]
        if empty and (isinstance(task.source, LocalFiles) or len(empty) == len(task.text_columns)):
            raise ValueError(
                f"expected text in column {empty[0]!r}, got nothing in {table.where(index)}; fill it or delete the row"
            )


def _sample(items: list[Item], limit: int | None) -> list[Item]:
    """Take at most `limit` items evenly spread over the set, in whole groups, of which one at least."""
    if limit is None or limit >= len(items):
        return items
    groups: dict[str | int, list[Item]] = {}
    for place, item in enumerate(items):
        groups.setdefault(item.group or place, []).append(item)
    whole = list(groups.values())
    for count in range(max(1, limit * len(whole) // len(items)), 0, -1):
        kept = [item for index in range(count) for item in whole[index * len(whole) // count]]
        if len(kept) <= limit:
            break
    return kept


def load_split(task: Task, split: str, data_dir: Path | None = None, limit: int | None = None) -> Split:
    """Load one split of a task.

    Args:
        task: A known task or an own one.
        split: "train", "validation", or for known tasks another split of the source.
        data_dir: Folder in hub layout to read instead of the hub; own tasks are read from their files.
        limit: Take only this many items, evenly spread; of grouped ones fewer, since groups are not broken.

    Raises:
        FileNotFoundError, ConnectionError: The rows cannot be had; the message says what to pass instead.
        ValueError: A column is missing, a text is empty, a label is missing, hidden, or unseen in training.
    """
    if limit is not None and limit < 1:
        raise ValueError(f"expected a limit of at least 1 row, got {limit}; pass a positive number")
    table = load_table(task, split, data_dir)
    check_columns(table, task.columns)
    if not table.rows:
        raise ValueError(f"expected rows in {table.origin}, got none; pass a file with data")
    _check_texts(table, task)
    items = []
    for index, row in enumerate(table.rows):
        for item in task.render(row):
            if is_empty(item.label):
                raise ValueError(
                    f"expected a label in column {task.label_column!r}, got nothing in {table.where(index)}; "
                    "fill it or delete the row"
                )
            place = table.where(index)
            label = to_number(item.label, place) if task.kind == "regression" else to_class_id(item.label, task, place)
            items.append(replace(item, label=label))
    kept = _sample(items, limit)
    return Split(split, tuple(kept), table.origin, table.partial or len(kept) < len(items))

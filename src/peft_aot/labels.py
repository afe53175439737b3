"""Labels as they stand in files, turned into what a model learns: class ids and numbers."""

from __future__ import annotations

import math
from typing import Any

from peft_aot.suggestions import did_you_mean
from peft_aot.task import HubSource, Task


def is_empty(value: Any) -> bool:
    """Say whether a cell holds nothing, or only white space."""
    return value is None or (isinstance(value, str) and not value.strip())


def to_class_id(raw: Any, task: Task, place: str) -> int:
    """Turn the label of a row, an id or a name, into a class id.

    Raises:
        ValueError: The label is hidden, or unseen in training; the message names `place` and the closest label.
    """
    if isinstance(raw, bool):
        raw = str(raw)
    if isinstance(raw, int) and isinstance(task.source, HubSource):
        if raw == -1:
            raise ValueError(
                f"expected a label, got the -1 of a hidden label in {place}; choose a split with public labels"
            )
        if 0 <= raw < len(task.labels):
            return raw
    elif label_name(raw) in task.labels:
        return task.labels.index(label_name(raw))
    raise ValueError(
        f"expected a label seen in training, got {label_name(raw)!r} in {place}; "
        f"{did_you_mean(label_name(raw), task.labels)}"
    )


def to_number(raw: Any, place: str) -> float:
    """Turn the label of a row into the number that a regression learns.

    Raises:
        ValueError: It is not a finite number.
    """
    try:
        value = float(raw)
    except (TypeError, ValueError):
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"expected a number as label, got {raw!r} in {place}; correct it or train a classification")
    return value


def label_name(raw: Any) -> str:
    """Name of a label as it stands in a file: text is stripped, whole numbers lose their ".0"."""
    if isinstance(raw, float) and raw.is_integer():
        return str(int(raw))
    return str(raw).strip()

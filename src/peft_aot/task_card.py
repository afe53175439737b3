"""The task card: what `task.json` beside an adapter says about the task it was trained for.

Written by train, read by evaluate, predict and info, whatever the method. Knows nothing of models and data.
"""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CARD_NAME = "task.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class TaskCard:
    """Task, model and scores of one trained adapter.

    Attributes:
        task: Name of a known task, or a name made of the training file's.
        kind: "classification", "regression" or "multiple_choice".
        text_columns: Columns that the text, and the second text if there is one, were read from.
        label_column: Column that the label was read from.
        labels: Label names in the order of the head's outputs; empty for regression.
        metrics: Names of the task's metrics (`peft_aot.metrics`).
        max_length: Longest input in tokens.
        base_model: Hub id or local path of the backbone.
        method: Name of the method (`peft_aot.methods`).
        precision: "fp32" or "bf16", the arithmetic the scores were computed in.
        scores: Validation scores by name, at the saved checkpoint; empty if it was never evaluated.
        partial_data: Names of the splits of which rows were missing, in the source or by a limit.
        train_examples: Training examples used.
        steps: Optimizer steps done.
        epochs: Passes over the training examples done, fractional.
        learning_rate: Peak learning rate.
        seed: Seed of the run.
        complete: Whether the run reached its end; an interrupted one can be resumed.
        own_files: For an own task, the training file and the file its scores were computed on.
    """

    task: str
    kind: str
    text_columns: tuple[str, ...]
    label_column: str
    labels: tuple[str, ...]
    metrics: tuple[str, ...]
    max_length: int
    base_model: str
    method: str
    precision: str
    scores: dict[str, float] = field(default_factory=dict)
    partial_data: tuple[str, ...] = ()
    train_examples: int = 0
    steps: int = 0
    epochs: float = 0.0
    learning_rate: float = 0.0
    seed: int = 0
    complete: bool = True
    own_files: tuple[str, str] | None = None


def save_card(card: TaskCard, directory: Path) -> Path:
    """Write `task.json` into `directory`, atomically: a crash leaves the old file or the new one."""
    directory.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"format_version": FORMAT_VERSION, **dataclasses.asdict(card)}, indent=2, ensure_ascii=False)
    handle, temporary = tempfile.mkstemp(prefix=f".{CARD_NAME}.", dir=directory)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes it private; an adapter is meant to be shared
        os.replace(temporary, directory / CARD_NAME)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    return directory / CARD_NAME


def load_card(directory: Path) -> TaskCard:
    """Read `task.json` from `directory`.

    Raises:
        FileNotFoundError: There is no card.
        ValueError: The card is broken, or of a format this version does not know.
    """
    path = directory / CARD_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"expected a {CARD_NAME} in {directory}, got none; pass the output directory of `peft-aot train`"
        )
    try:
        raw: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        version = raw.pop("format_version")
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"expected a task card in {path}, got unreadable JSON ({error}); train again") from error
    if version != FORMAT_VERSION:
        raise ValueError(
            f"expected format_version {FORMAT_VERSION} in {path}, got {version!r}; use a peft_aot that writes it"
        )
    known = {entry.name for entry in dataclasses.fields(TaskCard)}
    required = {
        entry.name
        for entry in dataclasses.fields(TaskCard)
        if entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
    }
    if set(raw) - known or required - set(raw):
        raise ValueError(
            f"expected the fields {sorted(known)} in {path}, got unknown {sorted(set(raw) - known)} and "
            f"missing {sorted(required - set(raw))}; train again"
        )
    for name in ("text_columns", "labels", "metrics", "partial_data"):
        raw[name] = tuple(raw.get(name, ()))
    if raw.get("own_files") is not None:
        raw["own_files"] = tuple(raw["own_files"])
    return TaskCard(**raw)

"""An own task, as the options of several verbs describe it."""

from __future__ import annotations

from pathlib import Path

from peft_aot.task import LocalFiles


def own_files(
    train: Path, validation: Path | None, text: str, pair: str | None, label: str, regression: bool
) -> LocalFiles:
    """Write the task that `--train-file` and the options beside it ask for."""
    return LocalFiles(train, validation, text, pair, label, "regression" if regression else "classification")

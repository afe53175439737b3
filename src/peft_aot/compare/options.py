"""What a user asks of a comparison, and what all of its runs therefore share."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from peft_aot.preparation import Precision, TrainOptions
from peft_aot.task import LocalFiles

from .records import Run
from .space import overrides_of

CONTROLS = ("aot-constant", "aot-layer0", "aot-random", "aot-hidden")
DEFAULT_METHODS = (
    "full",
    "head",
    "bitfit",
    "lora",
    "prefix",
    "prompt",
    "ia3",
    "houlsby",
    "pafi",
    "hiwi",
    "aot",
    "aot-kron",
)


@dataclass(frozen=True)
class CompareOptions:
    """What is compared, and how.

    Attributes:
        model: Hub id or local path of the backbone.
        output: Directory that receives runs, costs and the report; a comparison found there goes on.
        tasks: Names of known tasks, or files of own ones.
        methods: Names of methods.
        data_dir: Directory in hub layout to read known tasks from instead of the hub.
        trials: Search runs per method and task, the same for all methods.
        seeds: Runs of the best settings, the search's own included; the median over them is the score.
        epochs: Most passes over the training set.
        patience: Stop a run after this many epochs without a better validation score; None trains all epochs.
        batch_size: Examples per optimizer step.
        max_length: Longest input in tokens; None takes each task's default.
        precision: As for training.
        limit_train: Use only this many training examples per task (an even sample): outputs say "partial".
        limit_validation: The same for validation.
        spaces: Method -> axes that replace those of its search space.
        timing_rounds: Rounds of the inference timing; 0 leaves it out.
    """

    model: str
    output: Path
    tasks: tuple[str | LocalFiles, ...]
    methods: tuple[str, ...] = DEFAULT_METHODS
    data_dir: Path | None = None
    trials: int = 8
    seeds: int = 3
    epochs: float = 5.0
    patience: int | None = 2
    batch_size: int = 32
    max_length: int | None = None
    precision: Precision = "auto"
    limit_train: int | None = None
    limit_validation: int | None = None
    spaces: Mapping[str, Mapping[str, tuple[Any, ...]]] = field(default_factory=dict)
    timing_rounds: int = 30

    def __post_init__(self) -> None:
        for name in ("trials", "seeds", "epochs", "batch_size", "patience", "max_length"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                never = ", or None (on the command line 0) to stop no run early" if name == "patience" else ""
                raise ValueError(f"expected {name} above 0, got {value}; pass a positive number{never}")
        if self.timing_rounds < 0 or self.timing_rounds == 1:
            raise ValueError(
                f"expected timing_rounds of 0 or at least 2, got {self.timing_rounds}; 30 is a good number, 0 leaves "
                "the timing out"
            )
        for name in ("tasks", "methods"):
            values = tuple(task_name(value) for value in getattr(self, name))
            if not values:
                raise ValueError(f"expected at least one of {name}, got none; name some")
            if len(set(values)) < len(values):
                raise ValueError(f"expected each of {name} once, got {', '.join(values)}; name each once")

    def protocol(self) -> dict[str, Any]:
        """What all runs share, as JSON values: two runs compare only if this is the same for both."""
        return {
            name: getattr(self, name)
            for name in (
                "model", "epochs", "patience", "batch_size", "max_length", "precision", "limit_train",
                "limit_validation",
            )
        }  # fmt: skip

    def protocol_of(self, name: str) -> dict[str, Any]:
        """What all runs on one task share: of an own task also a hash of its files."""
        task = self.task(name)
        return {**self.protocol(), "files": _fingerprint(task)} if isinstance(task, LocalFiles) else self.protocol()

    def task(self, name: str) -> str | LocalFiles:
        """Return the task of that name."""
        return next(task for task in self.tasks if task_name(task) == name)

    def train_options(self, run: Run, output: Path) -> TrainOptions:
        """Write the options of one run."""
        settings = run.settings
        return TrainOptions(
            task=self.task(run.task),
            model=self.model,
            output=output,
            method=run.method,
            data_dir=self.data_dir,
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=settings.get("learning_rate"),
            head_learning_rate=settings.get("head_learning_rate"),
            weight_decay=settings.get("weight_decay", 0.0),
            max_length=self.max_length,
            rank=settings.get("rank"),
            virtual_tokens=settings.get("virtual_tokens", 20),
            overrides=overrides_of(settings),
            patience=self.patience,
            seed=run.seed,
            precision=self.precision,
            limit_train=self.limit_train,
            limit_validation=self.limit_validation,
        )


def task_name(task: str | LocalFiles) -> str:
    """The name by which a comparison calls a task: an own one is called after its training file."""
    return task.train.stem if isinstance(task, LocalFiles) else task


def _fingerprint(files: LocalFiles) -> str:
    """Hash what an own task's scores depend on: the files' contents, and how they are read."""
    digest = sha256(repr((files.text_column, files.pair_column, files.label_column, files.kind)).encode())
    for path in (files.train, files.validation):
        digest.update(path.read_bytes() if path is not None else b"")
    return digest.hexdigest()[:16]

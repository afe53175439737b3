"""Everything that can be wrong with a training run, found before anything on disk changes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import transformers
from peft import PeftConfig

from peft_aot.data import TRAIN, VALIDATION, Split, load_split
from peft_aot.loading import Backbone, load_backbone, pick_device, pick_precision
from peft_aot.method import AdapterRequest, configure
from peft_aot.methods import get_method
from peft_aot.own_task import open_task
from peft_aot.run_folder import RunFolder
from peft_aot.task import LocalFiles, Task
from peft_aot.task_card import TaskCard

Precision: TypeAlias = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class TrainOptions:
    """Everything that decides a training run.

    Attributes:
        task: Name of a known task (`peft_aot.tasks.task_names()`), or the files of an own one.
        model: Hub id or local path of the backbone.
        output: Directory that receives the adapter, `task.json` and, while training, `checkpoints/`.
        method: Name of a method (`peft_aot.methods.method_names()`).
        data_dir: Directory in hub layout to read known tasks from instead of the hub.
        epochs: Passes over the training set.
        max_steps: Stop after this many optimizer steps whatever `epochs` says.
        batch_size: Examples per optimizer step.
        learning_rate: Peak learning rate; None takes the method's default.
        max_length: Longest input in tokens; None takes the task's default.
        rank: Rank of AoT and LoRA; None takes the method's default.
        virtual_tokens: Length of the prompt of `prompt` and of the prefix of `prefix`.
        overrides: Other fields of the method's PEFT configuration, such as `{"dropout": 0.0}`.
        head_learning_rate: Peak learning rate of the modules that the checkpoint lacks (the head, sometimes a pooler);
            None takes that of the rest.
        weight_decay: Decoupled weight decay of what is trained.
        patience: Stop after this many epochs without a better validation score; None trains all epochs.
        seed: Seed of head, adapter, order of examples and dropout.
        precision: "bf16" trains under bf16 autocast, "fp32" without; "auto" takes bf16 where the hardware computes it.
        limit_train: Use only this many training examples (an even sample of the set).
        limit_validation: The same for validation.
        fuse: Write the fused lookup table beside an AoT adapter at the end.
        resume: Go on from the last checkpoint in `output`.
        overwrite: Replace what `output` holds.
    """

    task: str | LocalFiles
    model: str
    output: Path
    method: str = "aot"
    data_dir: Path | None = None
    epochs: float = 3.0
    max_steps: int | None = None
    batch_size: int = 16
    learning_rate: float | None = None
    max_length: int | None = None
    rank: int | None = None
    virtual_tokens: int = 20
    overrides: Mapping[str, Any] = field(default_factory=dict)
    head_learning_rate: float | None = None
    weight_decay: float = 0.0
    patience: int | None = None
    seed: int = 0
    precision: Precision = "auto"
    limit_train: int | None = None
    limit_validation: int | None = None
    fuse: bool = False
    resume: bool = False
    overwrite: bool = False


@dataclass(frozen=True)
class Prepared:
    """Everything a run needs, checked and loaded; nothing on disk has changed yet."""

    task: Task
    train: Split
    validation: Split
    backbone: Backbone
    config: PeftConfig | None
    card: TaskCard
    run: RunFolder
    record: dict[str, Any]
    checkpoint: Path | None


def _record(options: TrainOptions) -> dict[str, Any]:
    """The options that decide the run, as JSON values."""
    ignored = ("output", "resume", "overwrite", "fuse", "data_dir")
    values = {name: value for name, value in dataclasses.asdict(options).items() if name not in ignored}
    if isinstance(options.task, LocalFiles):
        files = dataclasses.asdict(options.task)
        values["task"] = {name: str(v) if isinstance(v, Path) else v for name, v in files.items()}
    return values


def _check_numbers(options: TrainOptions) -> None:
    for name in ("epochs", "max_steps", "batch_size", "learning_rate", "head_learning_rate", "max_length", "patience"):
        value = getattr(options, name)
        if value is not None and not 0 < value < math.inf:
            raise ValueError(f"expected {name} above 0, got {value}; pass a positive number")
    if not 0 <= options.weight_decay < math.inf:
        raise ValueError(f"expected weight_decay of at least 0, got {options.weight_decay}; 0 switches it off")
    if options.fuse and not options.method.startswith("aot"):
        raise ValueError(f"expected an AoT method to fuse, got {options.method!r}; drop fuse or choose aot")


def _input_length(wanted: int | None, task: Task, backbone: Backbone, virtual_tokens: int) -> int:
    """Longest input in tokens: what the user wants or the task's default, if the backbone has the positions."""
    positions = backbone.model.config.to_dict().get("max_position_embeddings") or backbone.tokenizer.model_max_length
    room = min(positions, backbone.tokenizer.model_max_length) - virtual_tokens
    if wanted is not None and wanted > room:
        raise ValueError(
            f"expected max_length of at most {room} (the backbone's {room + virtual_tokens} positions less "
            f"{virtual_tokens} virtual tokens), got {wanted}; pass a smaller max_length"
        )
    return min(wanted or task.max_length, room)


def prepare(options: TrainOptions) -> Prepared:
    """Check options, data and model, and load them, without changing anything on disk.

    Raises:
        ValueError, FileNotFoundError, FileExistsError, ConnectionError: Bad input; the message says what to do.
    """
    _check_numbers(options)
    method = get_method(options.method)
    run = RunFolder(options.output)
    record = _record(options)
    checkpoint = run.check(record, options.resume, options.overwrite)
    task = open_task(options.task)
    training = load_split(task, TRAIN, options.data_dir, options.limit_train)
    validation = load_split(task, VALIDATION, options.data_dir, options.limit_validation)
    transformers.set_seed(options.seed)
    backbone = load_backbone(options.model, task.kind, task.labels)
    request = AdapterRequest(
        str(backbone.model.config.model_type),
        task.kind,
        backbone.new_modules,
        options.rank,
        options.virtual_tokens,
        options.overrides,
    )
    config = configure(method, request)
    virtual_tokens = options.virtual_tokens if method.virtual_tokens else 0
    own = task.source if isinstance(task.source, LocalFiles) else None
    card = TaskCard(
        task=task.name,
        kind=task.kind,
        text_columns=task.text_columns,
        label_column=task.label_column,
        labels=task.labels,
        metrics=task.metrics,
        max_length=_input_length(options.max_length, task, backbone, virtual_tokens),
        base_model=options.model,
        method=method.name,
        precision=pick_precision(options.precision, pick_device()),
        partial_data=tuple(split.name for split in (training, validation) if split.partial),
        train_examples=len(training.items),
        learning_rate=options.learning_rate or method.learning_rate,
        seed=options.seed,
        complete=False,
        own_files=None if own is None else (str(own.train), str(own.validation or own.train)),
    )
    return Prepared(task, training, validation, backbone, config, card, run, record, checkpoint)

"""What a comparison must know of its tasks before it starts: that they can be read, and how long they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

from transformers import PreTrainedTokenizerBase

from peft_aot.data import TRAIN, VALIDATION, load_split
from peft_aot.features import Features, encode
from peft_aot.metrics import check_metrics
from peft_aot.own_task import open_task
from peft_aot.rendering import Item
from peft_aot.task import Task

from .options import CompareOptions, task_name


@dataclass(frozen=True)
class TaskFacts:
    """One task as the comparison will run it.

    Attributes:
        name: The name the comparison calls it by.
        task: The task.
        partial: Names of the splits of which official rows are missing.
        train: Training features, of which only the lengths and a few batches are looked at.
        train_tokens: Tokens of one epoch, without padding.
        validation_tokens: Tokens of one evaluation.
        items: A few items of the validation split.
        rows: Hash of a known task's items, which its name does not vouch for; empty for an own task, whose files the
            protocol has a hash of.
    """

    name: str
    task: Task
    partial: tuple[str, ...]
    train: Features
    train_tokens: int
    validation_tokens: int
    items: tuple[Item, ...]
    rows: str = ""


def gather(options: CompareOptions, tokenizer: PreTrainedTokenizerBase) -> list[TaskFacts]:
    """Read all tasks of a comparison, the quickest first.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: A task cannot be used; nothing was changed.
    """
    found = []
    for given in options.tasks:
        task = open_task(given)
        check_metrics(task.metrics, task.kind)
        training = load_split(task, TRAIN, options.data_dir, options.limit_train)
        validation = load_split(task, VALIDATION, options.data_dir, options.limit_validation)
        length = min(options.max_length or task.max_length, tokenizer.model_max_length)
        train = encode(training.items, tokenizer, task.kind, length)
        found.append(
            TaskFacts(
                task_name(given),
                task,
                tuple(split.name for split in (training, validation) if split.partial),
                train,
                _tokens(train),
                _tokens(encode(validation.items, tokenizer, task.kind, length)),
                validation.items[:64],
                _hash((*training.items, *validation.items)) if isinstance(given, str) else "",
            )
        )
    return sorted(found, key=lambda facts: facts.train_tokens)


def _hash(items: Sequence[Item]) -> str:
    digest = sha256()
    for item in items:
        digest.update(repr((item.sequences, item.label, item.group, item.candidate, item.answers)).encode())
    return digest.hexdigest()[:16]


def _tokens(features: Features) -> int:
    return sum(_length(row["input_ids"]) for row in features.rows)


def _length(ids: Sequence[int] | Sequence[Sequence[int]]) -> int:
    return sum(len(part) if isinstance(part, list) else 1 for part in ids)

"""Answer texts with a trained adapter: texts in, predictions out. Knows nothing of terminals and files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from scipy.special import softmax

from peft_aot.features import collator, encode
from peft_aot.inference import EVALUATION_BATCH, compute_logits
from peft_aot.labels import is_empty
from peft_aot.loading import Trained
from peft_aot.own_task import task_of
from peft_aot.rendering import Item
from peft_aot.suggestions import did_you_mean
from peft_aot.task import Task

Question: TypeAlias = str | Mapping[str, Any]


@dataclass(frozen=True)
class Prediction:
    """The answer to one question.

    Attributes:
        label: Name of the likeliest class or choice; for ReCoRD the likeliest entity; None for regression.
        probability: Its probability; None for regression.
        probabilities: All probabilities by label; empty for regression.
        value: The number a regression predicts; None otherwise.
    """

    label: str | None
    probability: float | None
    probabilities: dict[str, float]
    value: float | None


def _describe_columns(task: Task) -> str:
    return "{" + ", ".join(f'"{column}": ...' for column in task.text_columns) + "}"


def _items(question: Question, task: Task, number: int) -> list[Item]:
    """Render one question; `number` is for messages."""
    single = len(task.text_columns) == 1
    if isinstance(question, str):
        if not single:
            raise ValueError(
                f"expected an object with {', '.join(task.text_columns)} for the task {task.name!r}, got plain text in "
                f"input {number}; write {_describe_columns(task)}"
            )
        question = {task.text_columns[0]: question}
    for column in task.text_columns:
        if column not in question:
            hint = did_you_mean(column, question) if question else "the object is empty"
            raise ValueError(
                f"expected the keys {', '.join(task.text_columns)} in input {number}, got no {column!r}; {hint}"
            )
    if all(is_empty(question[column]) for column in task.text_columns):
        raise ValueError(f"expected text in input {number}, got nothing; write something or leave the line out")
    return [replace(item, label=None) for item in task.render(question)]


def predict(
    trained: Trained,
    questions: Sequence[Question],
    precision: str | None = None,
    batch_size: int = EVALUATION_BATCH,
    first_number: int = 1,
) -> list[Prediction]:
    """Answer questions, in order.

    Args:
        trained: What `load_trained` returns.
        questions: A text where the task reads one text, else an object with the task's text columns.
        precision: "fp32" or "bf16"; None takes the training's.
        batch_size: Questions per forward pass.
        first_number: What error messages call the first question.

    Raises:
        ValueError: A question lacks a column or is empty; the message gives its number.
    """
    card = trained.card
    task = task_of(card)
    rendered = [_items(question, task, number) for number, question in enumerate(questions, first_number)]
    items = [item for entry in rendered for item in entry]
    if not items:
        return []
    logits = compute_logits(
        trained.model,
        encode(items, trained.tokenizer, task.kind, card.max_length),
        collator(trained.tokenizer, task.kind),
        trained.device,
        precision or card.precision,
        batch_size,
    )
    if task.kind == "regression":
        return [Prediction(None, None, {}, float(row[0])) for row in logits]
    probabilities = softmax(logits, axis=-1)
    predictions = []
    start = 0
    for entry in rendered:
        stop = start + len(entry)
        predictions.append(_answer(task, entry, probabilities[start:stop]))
        start = stop
    return predictions


def _answer(task: Task, items: Sequence[Item], probabilities: np.ndarray[Any, np.dtype[Any]]) -> Prediction:
    if items[0].candidate:
        by_candidate = {item.candidate: float(row[1]) for item, row in zip(items, probabilities, strict=True)}
        best = max(by_candidate, key=by_candidate.__getitem__)
        return Prediction(best, by_candidate[best], by_candidate, None)
    row = probabilities[0]
    by_label = {label: float(value) for label, value in zip(task.labels, row, strict=True)}
    chosen = int(row.argmax())
    return Prediction(task.labels[chosen], float(row[chosen]), by_label, None)

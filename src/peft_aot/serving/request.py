"""What is asked of a serving engine and what it answers, as data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Kind: TypeAlias = Literal["single_label", "multi_label", "regression", "tokens", "embedding"]


@dataclass(frozen=True)
class Request:
    """One text, or pair of texts, for one task.

    Attributes:
        task: The task's name, or "__base__" for an embedding by the backbone alone.
        text: The text.
        pair: The second text, of tasks that read two.
        timeout: Seconds after which no answer is wanted any more; None waits.
    """

    task: str
    text: str
    pair: str | None = None
    timeout: float | None = None


@dataclass(frozen=True)
class Classification:
    """The answer of a task where one label is right.

    Attributes:
        label: The likeliest label.
        score: Its probability.
        scores: The probability of every label (softmax of the logits), in the order of the head's outputs.
    """

    label: str
    score: float
    scores: Mapping[str, float]


@dataclass(frozen=True)
class MultiLabel:
    """The answer of a task where any number of labels are right.

    Attributes:
        labels: The labels whose probability is at least one half, in the order of the head's outputs.
        scores: The probability of every label (sigmoid of its logit), in the same order.
    """

    labels: tuple[str, ...]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Regression:
    """The answer of a task that predicts a number.

    Attributes:
        value: The number.
    """

    value: float


@dataclass(frozen=True)
class Entity:
    """A run of words with one label.

    Attributes:
        label: The label, without the prefix of a B-/I- scheme.
        start: Offset of its first character in the text.
        end: Offset after its last character.
        text: The characters between them.
        score: Mean probability of its words' labels.
    """

    label: str
    start: int
    end: int
    text: str
    score: float


@dataclass(frozen=True)
class Word:
    """A word and its label.

    Attributes:
        label: The label of its first token, as the head names it.
        start: Offset of its first character in the text.
        end: Offset after its last character.
        score: The label's probability.
    """

    label: str
    start: int
    end: int
    score: float


@dataclass(frozen=True)
class Tags:
    """The answer of a task that labels words.

    Attributes:
        words: Every word that was read; a text that is too long is cut.
        entities: Runs of words with one label other than "O".
    """

    words: tuple[Word, ...]
    entities: tuple[Entity, ...]


@dataclass(frozen=True, eq=False)
class Embedding:
    """The answer of a task that embeds, or of the backbone.

    Attributes:
        vector: (D,) float32, of length 1.
    """

    vector: npt.NDArray[np.float32]


Answer: TypeAlias = Classification | MultiLabel | Regression | Tags | Embedding


@dataclass(frozen=True)
class TaskInfo:
    """What an engine tells of a task.

    Attributes:
        name: Its name.
        kind: What it answers: "single_label" a `Classification`, "multi_label" a `MultiLabel`, "regression" a
            `Regression`, "tokens" `Tags`, "embedding" an `Embedding`.
        labels: Its labels in the order of the head's outputs; empty for regression and embedding.
        max_length: Longest input in tokens; what is longer is cut.
        source: Folder or hub id it was read from.
        nbytes: Bytes its factors and heads take in memory.
        has_table: Whether it uses a fused table.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    max_length: int
    source: str
    nbytes: int
    has_table: bool

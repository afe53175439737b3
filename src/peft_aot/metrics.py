"""The scores of the tasks as local `evaluate.Metric` modules (`evaluate.load` would download a script).

Each is used like any metric of `evaluate`: `Accuracy().compute(predictions=..., references=...)`.
Numbers come from scikit-learn and scipy where they have them; MultiRC and ReCoRD follow the SuperGLUE definitions.
"""

from __future__ import annotations

import re
import string
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import numpy.typing as npt
from scipy import stats
from sklearn import metrics as sk

from peft_aot.rendering import Item
from peft_aot.suggestions import did_you_mean
from peft_aot.task import Kind

_ID = {"predictions": datasets.Value("int64"), "references": datasets.Value("int64")}
_NUMBER = {"predictions": datasets.Value("float64"), "references": datasets.Value("float64")}


def _describe(summary: str, features: dict[str, Any]) -> evaluate.MetricInfo:
    return evaluate.MetricInfo(
        description=summary, citation="", inputs_description=summary, features=datasets.Features(features)
    )


class Accuracy(evaluate.Metric):  # type: ignore[misc]
    """Share of class ids that are right."""

    def _info(self) -> evaluate.MetricInfo:
        return _describe("Share of right class ids, 0 to 1.", _ID)

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"accuracy": float(sk.accuracy_score(references, predictions))}


class F1(evaluate.Metric):  # type: ignore[misc]
    """F1 of class 1, as GLUE scores MRPC and QQP."""

    def _info(self) -> evaluate.MetricInfo:
        return _describe("F1 of class 1, 0 to 1.", _ID)

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"f1": float(sk.f1_score(references, predictions, labels=[1], average="macro", zero_division=0.0))}


class MacroF1(evaluate.Metric):  # type: ignore[misc]
    """F1 of every class that occurs, averaged without weights, as SuperGLUE scores CB."""

    def _info(self) -> evaluate.MetricInfo:
        return _describe("Unweighted mean of the classes' F1, 0 to 1.", _ID)

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"macro_f1": float(sk.f1_score(references, predictions, average="macro", zero_division=0.0))}


class MatthewsCorrelation(evaluate.Metric):  # type: ignore[misc]
    """Matthews correlation of class ids, as GLUE scores CoLA; 0 where it is undefined."""

    def _info(self) -> evaluate.MetricInfo:
        return _describe("Matthews correlation, -1 to 1.", _ID)

    def _compute(self, predictions: Sequence[int], references: Sequence[int]) -> dict[str, float]:
        return {"matthews_correlation": float(sk.matthews_corrcoef(references, predictions))}


def _correlation(function: Any, predictions: Sequence[float], references: Sequence[float]) -> float:
    """Correlate, or return 0 where a constant or diverged side leaves it undefined: nothing was learned."""
    if not np.isfinite(predictions).all() or np.ptp(predictions) == 0 or np.ptp(references) == 0:
        return 0.0
    return float(function(predictions, references).statistic)


class Pearson(evaluate.Metric):  # type: ignore[misc]
    """Pearson correlation, as GLUE scores STS-B."""

    def _info(self) -> evaluate.MetricInfo:
        return _describe("Pearson correlation, -1 to 1.", _NUMBER)

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return {"pearson": _correlation(stats.pearsonr, predictions, references)}


class Spearman(evaluate.Metric):  # type: ignore[misc]
    """Spearman rank correlation, as GLUE scores STS-B."""

    def _info(self) -> evaluate.MetricInfo:
        return _describe("Spearman rank correlation, -1 to 1.", _NUMBER)

    def _compute(self, predictions: Sequence[float], references: Sequence[float]) -> dict[str, float]:
        return {"spearman": _correlation(stats.spearmanr, predictions, references)}


class MultiRC(evaluate.Metric):  # type: ignore[misc]
    """SuperGLUE's MultiRC: F1 over all answers (f1a), and questions with every answer right (em)."""

    def _info(self) -> evaluate.MetricInfo:
        prediction = {"group": datasets.Value("string"), "prediction": datasets.Value("int64")}
        return _describe("f1a and em, 0 to 1.", {"predictions": prediction, "references": datasets.Value("int64")})

    def _compute(self, predictions: Sequence[dict[str, Any]], references: Sequence[int]) -> dict[str, float]:
        answers = [entry["prediction"] for entry in predictions]
        right: dict[str, bool] = defaultdict(lambda: True)
        for entry, reference in zip(predictions, references, strict=True):
            right[entry["group"]] &= entry["prediction"] == reference
        return {
            "f1a": float(sk.f1_score(references, answers, labels=[1], average="macro", zero_division=0.0)),
            "em": sum(right.values()) / len(right),
        }


def _words(answer: str) -> list[str]:
    """Lower-case, drop punctuation and articles, split: the normalization of SQuAD that ReCoRD uses."""
    bare = "".join(char for char in answer.lower() if char not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", bare).split()


def _word_f1(prediction: str, answer: str) -> float:
    ours, theirs = _words(prediction), _words(answer)
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


class ReCoRD(evaluate.Metric):  # type: ignore[misc]
    """SuperGLUE's ReCoRD: word F1 and exact match of one entity per query, each against its best answer."""

    def _info(self) -> evaluate.MetricInfo:
        text = datasets.Value("string")
        return _describe("f1 and em, 0 to 1.", {"predictions": text, "references": datasets.Sequence(text)})

    def _compute(self, predictions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
        pairs = list(zip(predictions, references, strict=True))
        return {
            "f1": sum(max(_word_f1(ours, answer) for answer in answers) for ours, answers in pairs) / len(pairs),
            "em": sum(any(_words(ours) == _words(answer) for answer in answers) for ours, answers in pairs)
            / len(pairs),
        }


_BY_NAME: dict[str, type[Any]] = {
    "accuracy": Accuracy,
    "f1": F1,
    "macro_f1": MacroF1,
    "matthews_correlation": MatthewsCorrelation,
    "pearson": Pearson,
    "spearman": Spearman,
    "multirc": MultiRC,
    "record": ReCoRD,
}


def metric_names() -> tuple[str, ...]:
    """Names that `compute_scores` knows."""
    return tuple(_BY_NAME)


def best_candidates(items: Sequence[Item], logits: npt.NDArray[np.floating[Any]]) -> dict[str, int]:
    """Choose, per group, the item whose class 1 is the likeliest: group -> index of the item."""
    margins = logits[:, 1] - logits[:, 0]
    best: dict[str, int] = {}
    for index, item in enumerate(items):
        if item.group not in best or margins[index] > margins[best[item.group]]:
            best[item.group] = index
    return best


def compute_scores(
    names: Sequence[str], items: Sequence[Item], logits: npt.NDArray[np.floating[Any]]
) -> dict[str, float]:
    """Score a model's logits.

    Args:
        names: Metrics to compute; one may return several numbers (multirc: f1a and em).
        items: What was answered, with labels.
        logits: One row per item: (N, classes or choices), or (N, 1) for regression.

    Returns:
        Name of the number -> value.

    Raises:
        ValueError: A metric is unknown or of the wrong kind of label, the items lack what it needs (groups, answers),
            or the numbers of items and logits differ.
    """
    if len(items) != len(logits):
        raise ValueError(f"expected one row of logits per item ({len(items)}), got {len(logits)}; pass the same items")
    scores: dict[str, float] = {}
    labels = [item.label for item in items]
    regression = logits.ndim == 2 and logits.shape[1] == 1
    check_metrics(names, "regression" if regression else "classification")
    _check_items(names, items)
    for name in names:
        predictions: list[Any]
        references: list[Any] = labels
        if name in ("pearson", "spearman"):
            predictions = logits.reshape(len(items)).astype(np.float64).tolist()
        elif name == "record":
            chosen = best_candidates(items, logits).values()
            predictions = [items[index].candidate for index in chosen]
            references = [list(items[index].answers) for index in chosen]
        else:
            predictions = logits.argmax(axis=-1).tolist()
        if name == "multirc":
            predictions = [
                {"group": item.group, "prediction": prediction}
                for item, prediction in zip(items, predictions, strict=True)
            ]
        scores.update(_BY_NAME[name](keep_in_memory=True).compute(predictions=predictions, references=references))
    return scores


KINDS = {"pearson": "regression", "spearman": "regression"}
"""Metrics of numbers; all others score class ids, which classification and multiple choice both have."""
GROUPED = ("multirc", "record")
"""Metrics of items that are classified one by one, and belong together in groups: a question's answers."""


def _check_items(names: Sequence[str], items: Sequence[Item]) -> None:
    """Refuse items that a metric can say nothing of.

    Raises:
        ValueError: They have no groups, or of ReCoRD no right answers.
    """
    for name in GROUPED:
        if name in names and not all(item.group for item in items):
            raise ValueError(f"expected items with a group, as {name!r} scores them, got some without; choose another")
    if "record" in names and not all(item.answers for item in items):
        raise ValueError("expected items with right answers, as 'record' scores them, got some without; choose another")


def check_metrics(names: Sequence[str], kind: Kind) -> None:
    """Refuse metrics that do not fit what a task's head answers.

    Raises:
        ValueError: A metric is unknown, or is of numbers where the labels are classes, or the other way round.
    """
    for name in names:
        if name not in _BY_NAME:
            raise ValueError(f"unknown metric {name!r}; {did_you_mean(name, _BY_NAME)}")
        if name in GROUPED and kind != "classification":
            raise ValueError(
                f"expected a task of kind 'classification' for {name!r}, which scores groups of items, got {kind!r}; "
                f"choose another metric"
            )
        if (KINDS.get(name) == "regression") != (kind == "regression"):
            fitting = [other for other in _BY_NAME if (KINDS.get(other) == "regression") == (kind == "regression")]
            labels = "numbers" if kind == "regression" else "classes"
            raise ValueError(
                f"expected a metric of {labels} for a task of kind {kind!r}, got {name!r}; choose one of "
                f"{', '.join(fitting)}"
            )


def mean_score(scores: dict[str, float]) -> float:
    """Boil a task's numbers down to one, as GLUE and SuperGLUE do: their mean."""
    return sum(scores.values()) / len(scores)

"""Metrics against numbers worked out by hand or by the plain definition."""

from __future__ import annotations

import dataclasses

import evaluate
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_aot.metrics import (
    MultiRC,
    ReCoRD,
    best_candidates,
    check_metrics,
    compute_scores,
    mean_score,
    metric_names,
)
from peft_aot.rendering import Item
from peft_aot.task import Task
from peft_aot.tasks import get_task, task_names


def answered(labels: list[float], predictions: list[int], classes: int) -> tuple[list[Item], np.ndarray]:
    items = [Item((("x", None),), label) for label in labels]
    return items, np.eye(classes, dtype=np.float32)[predictions]


def test_accuracy_and_f1_by_hand() -> None:
    # one true positive, one false positive, one false negative, one true negative
    items, logits = answered([1, 0, 1, 0], [1, 1, 0, 0], 2)
    scores = compute_scores(("accuracy", "f1"), items, logits)
    assert scores == {"accuracy": 0.5, "f1": 0.5}


def test_f1_is_of_class_one() -> None:
    items, logits = answered([0, 0, 0, 1], [0, 0, 0, 0], 2)
    assert compute_scores(("f1",), items, logits) == {"f1": 0.0}


def test_macro_f1_weighs_classes_equally() -> None:
    # class 0: precision 1, recall 2/3 -> 0.8; class 1: precision 1/2, recall 1 -> 2/3
    items, logits = answered([0, 0, 0, 1], [0, 0, 1, 1], 2)
    assert compute_scores(("macro_f1",), items, logits)["macro_f1"] == pytest.approx((0.8 + 2 / 3) / 2)


def test_matthews_by_hand_and_where_it_is_undefined() -> None:
    # tp 2, tn 1, fp 1, fn 0: (2*1 - 1*0) / sqrt(3*2*2*1)
    items, logits = answered([1, 1, 0, 0], [1, 1, 0, 1], 2)
    assert compute_scores(("matthews_correlation",), items, logits)["matthews_correlation"] == pytest.approx(
        2 / 12**0.5
    )
    items, logits = answered([1, 1, 0, 0], [1, 1, 1, 1], 2)
    assert compute_scores(("matthews_correlation",), items, logits) == {"matthews_correlation": 0.0}


def test_correlations_by_hand_and_where_they_are_undefined() -> None:
    items = [Item((("x", None),), label) for label in (1.0, 2.0, 3.0, 4.0)]
    scores = compute_scores(("pearson", "spearman"), items, np.array([[1.0], [2.0], [3.0], [100.0]]))
    assert scores["spearman"] == pytest.approx(1.0)
    assert scores["pearson"] == pytest.approx(np.corrcoef([1, 2, 3, 4], [1, 2, 3, 100])[0, 1])
    constant = compute_scores(("pearson", "spearman"), items, np.zeros((4, 1)))
    assert constant == {"pearson": 0.0, "spearman": 0.0}
    diverged = compute_scores(("pearson", "spearman"), items, np.full((4, 1), np.nan))
    assert diverged == {"pearson": 0.0, "spearman": 0.0}


def test_multirc_counts_answers_and_whole_questions() -> None:
    predictions = [
        {"group": "a", "prediction": 1},
        {"group": "a", "prediction": 0},
        {"group": "b", "prediction": 1},
        {"group": "b", "prediction": 1},
    ]
    scores = MultiRC(keep_in_memory=True).compute(predictions=predictions, references=[1, 0, 1, 0])
    assert scores == {"f1a": pytest.approx(0.8), "em": 0.5}


def test_multirc_uses_the_groups_of_the_items() -> None:
    items = [Item((("x", None),), label, group) for label, group in ((1, "a"), (1, "b"), (0, "a"))]
    logits = np.eye(2)[[1, 0, 0]]
    assert compute_scores(("multirc",), items, logits)["em"] == 0.5


def test_record_takes_the_best_answer_without_case_articles_and_punctuation() -> None:
    scores = ReCoRD(keep_in_memory=True).compute(
        predictions=["The White House!", "New York City", "Bonn"],
        references=[["Paris", "white house"], ["New York"], ["Rome"]],
    )
    assert scores["em"] == pytest.approx(1 / 3)
    assert scores["f1"] == pytest.approx((1 + 0.8 + 0) / 3)


def test_record_scores_the_likeliest_entity_of_each_query() -> None:
    items = [
        Item((("p", "q"),), 0, "1", "Ann", ("Bob",)),
        Item((("p", "q"),), 1, "1", "Bob", ("Bob",)),
        Item((("p", "q"),), 1, "2", "Ann", ("Ann",)),
        Item((("p", "q"),), 0, "2", "Bob", ("Ann",)),
    ]
    logits = np.array([[0.0, 3.0], [0.0, 4.0], [5.0, 5.5], [0.0, 1.0]])
    assert best_candidates(items, logits) == {"1": 1, "2": 3}
    assert compute_scores(("record",), items, logits) == {"f1": 0.5, "em": 0.5}


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=20), st.randoms())
def test_scores_do_not_depend_on_the_order_of_rows(pairs: list[tuple[int, int]], random: object) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    before, after = (
        compute_scores(("accuracy", "macro_f1"), *answered([a for a, _ in order], [b for _, b in order], 3))
        for order in (pairs, shuffled)
    )
    assert before == pytest.approx(after)


@pytest.mark.parametrize("name", metric_names())
def test_every_metric_is_a_module_of_evaluate(name: str) -> None:
    from peft_aot import metrics

    module = metrics._BY_NAME[name](keep_in_memory=True)
    assert isinstance(module, evaluate.Metric)
    assert module.description


def test_unknown_metrics_and_misaligned_rows_are_refused() -> None:
    items, logits = answered([1, 0], [1, 0], 2)
    with pytest.raises(ValueError, match="unknown metric 'acuracy'; did you mean 'accuracy'\\?"):
        compute_scores(("acuracy",), items, logits)
    with pytest.raises(ValueError, match=r"expected one row of logits per item \(2\), got 1; pass the same items"):
        compute_scores(("accuracy",), items, logits[:1])


def test_metrics_of_groups_are_refused_for_items_without() -> None:
    items, logits = answered([1, 0], [1, 0], 2)
    for name in ("multirc", "record"):
        with pytest.raises(ValueError, match=f"expected items with a group, as '{name}' scores them, got some without"):
            compute_scores((name,), items, logits)
        with pytest.raises(ValueError, match=f"expected a task of kind 'classification' for '{name}'"):
            check_metrics((name,), "multiple_choice")
    with pytest.raises(ValueError, match="expected items with right answers, as 'record' scores them, got some"):
        compute_scores(("record",), [dataclasses.replace(item, group="1") for item in items], logits)


def test_the_score_of_a_task_is_the_mean_of_its_numbers() -> None:
    assert mean_score({"accuracy": 0.5, "f1": 1.0}) == 0.75


@pytest.mark.parametrize(
    ("name", "columns", "message"),
    [
        (
            "pearson",
            2,
            "expected a metric of classes for a task of kind 'classification', got 'pearson'; choose one of acc",
        ),
        (
            "accuracy",
            1,
            "expected a metric of numbers for a task of kind 'regression', got 'accuracy'; choose one of pear",
        ),
    ],
)
def test_a_metric_of_the_wrong_kind_of_label_is_refused(name: str, columns: int, message: str) -> None:
    items = [Item((("x", None),), 1), Item((("x", None),), 0)]
    with pytest.raises(ValueError, match=message):
        compute_scores((name,), items, np.zeros((2, columns)))


@pytest.mark.parametrize("task", [get_task(name) for name in task_names()], ids=task_names())
def test_the_metrics_of_every_known_task_fit_it(task: Task) -> None:
    check_metrics(task.metrics, task.kind)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=12))
def test_counts_of_classes_by_their_published_definitions(pairs: list[tuple[int, int]]) -> None:
    """Accuracy, F1 and Matthews correlation from the four counts; F1 and correlation are 0 where they are undefined."""
    both = sum(p and r for p, r in pairs)
    neither = sum(not p and not r for p, r in pairs)
    wrong = sum(p and not r for p, r in pairs)
    missed = sum(r and not p for p, r in pairs)
    items, logits = answered([p for p, _ in pairs], [r for _, r in pairs], 2)
    scores = compute_scores(("accuracy", "f1", "matthews_correlation"), items, logits)
    assert scores["accuracy"] == pytest.approx((both + neither) / len(pairs))
    assert scores["f1"] == pytest.approx(2 * both / (2 * both + wrong + missed) if both else 0.0)
    norm = ((both + wrong) * (both + missed) * (neither + wrong) * (neither + missed)) ** 0.5
    expected = (both * neither - wrong * missed) / norm if norm else 0.0
    assert scores["matthews_correlation"] == pytest.approx(expected)

"""Logits to answers; entities by hand-made cases."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from peft_aot.serving import Entity, Word
from peft_aot.serving.answers import classification, embeddings, entities, multi_label, regression, tags

TEXT = "Anna Lee of Rome met Bo"
SPANS = [(0, 4), (5, 8), (9, 11), (12, 16), (17, 20), (21, 23)]


def words(labels: str) -> list[Word]:
    return [
        Word(label, *span, 0.5 + 0.1 * n) for n, (label, span) in enumerate(zip(labels.split(), SPANS, strict=True))
    ]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ("B-PER I-PER O B-LOC O B-PER", [("PER", "Anna Lee"), ("LOC", "Rome"), ("PER", "Bo")]),
        ("B-PER B-PER O O O O", [("PER", "Anna"), ("PER", "Lee")]),
        ("O I-PER O I-LOC I-PER O", [("PER", "Lee"), ("LOC", "Rome"), ("PER", "met")]),
        ("PER PER O LOC PER PER", [("PER", "Anna Lee"), ("LOC", "Rome"), ("PER", "met Bo")]),
        ("O O O O O O", []),
        ("B-PER O I-PER O O O", [("PER", "Anna"), ("PER", "of")]),
        ("first-name first-name O O O O", [("first-name", "Anna Lee")]),
    ],
)
def test_entities(labels: str, expected: list[tuple[str, str]]) -> None:
    found = entities(words(labels), TEXT)
    assert [(entity.label, entity.text) for entity in found] == expected
    assert all(TEXT[entity.start : entity.end] == entity.text for entity in found)


def test_an_entitys_score_is_the_mean_of_its_words() -> None:
    (entity,) = entities(words("B-PER I-PER O O O O"), TEXT)
    assert entity == Entity("PER", 0, 8, "Anna Lee", pytest.approx(0.55))


def test_tags_take_the_first_token_of_a_word() -> None:
    logits = np.log(np.array([[0.5, 0.5], [0.2, 0.8], [0.9, 0.1], [0.7, 0.3]], dtype=np.float32))
    found = tags(logits, ["O", "X"], [(1, 0, 4), (3, 5, 8)], TEXT)
    assert [(word.label, word.start, word.end) for word in found.words] == [("X", 0, 4), ("O", 5, 8)]
    assert [word.score for word in found.words] == pytest.approx([0.8, 0.7])
    assert tags(logits, ["O", "X"], [], TEXT).words == ()


def test_labels_and_numbers() -> None:
    one = classification([0.25, 0.75], ["a", "b"])
    assert (one.label, one.score, one.scores) == ("b", pytest.approx(0.75), pytest.approx({"a": 0.25, "b": 0.75}))
    many = multi_label(np.array([0.0, -1.0, 3.0], dtype=np.float32), ["a", "b", "c"])
    assert many.labels == ("a", "c")
    assert many.scores["b"] == pytest.approx(1 / (1 + np.e))
    assert regression(np.array([2.5], dtype=np.float32)).value == 2.5


def test_embeddings_ignore_padding_on_either_side() -> None:
    hidden = torch.randn(3, 4, 5)
    mask = torch.tensor([[1, 1, 0, 0], [0, 0, 1, 1], [1, 1, 1, 1]])
    found = [e.vector for e in embeddings(hidden, mask, ["mean", "cls", "cls"])]
    for vector, expected in zip(found, (hidden[0, :2].mean(0), hidden[1, 2], hidden[2, 0]), strict=True):
        np.testing.assert_allclose(vector, expected / expected.norm(), atol=1e-6)

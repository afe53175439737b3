"""Items as batches, the order of training, and logits that do not depend on the batch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from peft_aot.features import collator, encode
from peft_aot.inference import compute_logits
from peft_aot.loading import Backbone, load_backbone
from peft_aot.rendering import Item
from peft_aot.sampling import LengthGroupedOrder
from tiny_text import write_backbone


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Backbone:
    return load_backbone(str(write_backbone(tmp_path_factory.mktemp("bb"))), "classification", ("a", "b"))


def test_pairs_are_told_apart_and_cut_to_length(backbone: Backbone) -> None:
    items = [Item((("red dog", "the very very very very blue cat"),), 1), Item((("red", "dog"),), 0)]
    features = encode(items, backbone.tokenizer, "classification", 8)
    assert features.lengths == [8, 5]
    assert features[0]["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1, 1]
    assert [row["labels"] for row in features.rows] == [1, 0]
    batch = collator(backbone.tokenizer, "classification")(features.rows)
    assert batch["input_ids"].shape == (2, 8)
    assert batch["attention_mask"].sum().item() == 13


def test_choices_are_padded_together_with_and_without_labels(backbone: Backbone) -> None:
    items = [Item((("red dog", "cat"), ("red dog", "a blue bird")), 1), Item((("a", "b"), ("c", "d")), 0)]
    features = encode(items, backbone.tokenizer, "multiple_choice", 16)
    batch = collator(backbone.tokenizer, "multiple_choice")(features.rows)
    assert batch["input_ids"].shape == (2, 2, 8)
    assert batch["labels"].tolist() == [1, 0]
    bare = encode([Item(item.sequences) for item in items], backbone.tokenizer, "multiple_choice", 16)
    assert "labels" not in collator(backbone.tokenizer, "multiple_choice")(bare.rows)


def test_no_items_make_no_features(backbone: Backbone) -> None:
    assert len(encode([], backbone.tokenizer, "classification", 8)) == 0


def test_logits_come_in_the_order_of_the_items_whatever_the_batch_size(backbone: Backbone) -> None:
    texts = ["red dog", "blue", "the very very yellow horse", "a cat is green", "bird"]
    features = encode([Item(((text, None),)) for text in texts], backbone.tokenizer, "classification", 16)
    collate = collator(backbone.tokenizer, "classification")
    alone = [backbone.model.eval()(**collate([row])).logits.detach().numpy()[0] for row in features.rows]
    for batch_size in (1, 2, 5):
        logits = compute_logits(backbone.model, features, collate, torch.device("cpu"), batch_size=batch_size)
        np.testing.assert_allclose(logits, np.stack(alone), atol=1e-5)
    half = compute_logits(backbone.model, features, collate, torch.device("cpu"), "bf16")
    assert half.dtype == np.float32
    assert 0 < np.abs(half - np.stack(alone)).max() < 2e-2


@given(st.lists(st.integers(1, 50), min_size=1, max_size=60), st.integers(1, 8), st.integers(0, 3))
def test_the_training_order_is_a_permutation_that_seed_and_epoch_decide(
    lengths: list[int], batch_size: int, epoch: int
) -> None:
    first, again = (LengthGroupedOrder(lengths, batch_size, seed=5) for _ in range(2))
    list(again)  # an epoch that was drawn before must not matter
    torch.rand(3)  # nor the global random state
    for order in (first, again):
        order.set_epoch(epoch)
    assert list(first) == list(again)
    assert sorted(first) == list(range(len(lengths)))


def test_epochs_and_seeds_differ_and_batches_are_of_similar_length() -> None:
    lengths = [1 + index % 40 for index in range(400)]
    order = LengthGroupedOrder(lengths, 8, seed=0)
    first = list(order)
    order.set_epoch(1)
    assert first != list(order)
    assert first != list(LengthGroupedOrder(lengths, 8, seed=1))
    spreads = [np.ptp([lengths[i] for i in first[start : start + 8]]) for start in range(0, 400, 8)]
    assert np.mean(spreads) < 5

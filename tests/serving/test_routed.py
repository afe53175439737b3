"""One product for all tasks' linear layers gives what a loop over tasks gives."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from peft_aot.serving.routed import Routed, linear_rows, looped_rows


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_linear_layers_of_any_widths(data: st.DataObject) -> None:
    torch.manual_seed(data.draw(st.integers(0, 99)))
    width, middle = data.draw(st.integers(1, 6)), data.draw(st.lists(st.integers(1, 4), max_size=2))
    layers = [
        nn.Linear(width, data.draw(st.integers(1, 7)), bias=data.draw(st.booleans()))
        for _ in range(data.draw(st.integers(1, 5)))
    ]
    modules_of = data.draw(st.lists(st.sampled_from(layers), min_size=1, max_size=9))
    distinct = list(dict.fromkeys(modules_of))
    features = torch.randn(len(modules_of), *middle, width)
    expected = looped_rows(features, distinct, modules_of)
    found = linear_rows(features, distinct, modules_of)
    torch.testing.assert_close(found, expected)
    for row, module in enumerate(modules_of):
        alone = module(features[row : row + 1])[0]
        torch.testing.assert_close(found[row, ..., : module.out_features], alone)
        assert (found[row, ..., module.out_features :] == float("-inf")).all()


@pytest.mark.parametrize("networks", [1, 3])
def test_other_modules_are_looped_over(networks: int) -> None:
    distinct = [nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2 + n)) for n in range(networks)]
    routed = Routed(distinct[0])
    routed.modules_of = [distinct[n % networks] for n in (2, 0, 1, 1)]
    features = torch.randn(4, 4)
    for row, (logits, module) in enumerate(zip(routed(features), routed.modules_of, strict=True)):
        alone = module(features[row])
        torch.testing.assert_close(logits[: len(alone)], alone)
        assert (logits[len(alone) :] == float("-inf")).all()
    assert not list(routed.parameters())

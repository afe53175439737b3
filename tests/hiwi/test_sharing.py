"""`share=True`: one network for all modules of a width, however the model is copied and whatever is deleted."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from backbones import build, inputs, output
from peft_aot import HiWiConfig, HiWiLayer
from peft_aot.hiwi.network import Network

TASK = "FEATURE_EXTRACTION"
BATCH = inputs("bert", TASK)
for_targets = pytest.mark.parametrize("target", ["bias", "weight"])


def shared(**fields: Any) -> PeftModel:
    return get_peft_model(build("bert", TASK), HiWiConfig(task_type=TASK, r=8, share=True, **fields)).eval()


def networks(model: nn.Module, adapter: str = "default") -> dict[int, list[Network]]:
    """The networks of an adapter by width, one entry per layer."""
    found: dict[int, list[Network]] = {}
    for layer in model.modules():
        if isinstance(layer, HiWiLayer) and layer.has(adapter):
            found.setdefault(layer.network(adapter).width, []).append(layer.network(adapter))
    return found


def is_shared(model: nn.Module, adapter: str = "default") -> bool:
    found = networks(model, adapter)
    assert {width: len(layers) for width, layers in found.items()} == {64: 2, 32: 2}
    return all(len({id(network) for network in layers}) == 1 for layers in found.values())


@for_targets
def test_one_network_for_each_width(target: str) -> None:
    model = shared(target=target)
    assert is_shared(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == model.get_nb_trainable_parameters()[0] == 2 * 8 * (64 + 32)
    apart = get_peft_model(build("bert", TASK), HiWiConfig(r=8, target=target))
    assert apart.get_nb_trainable_parameters()[0] == 2 * 2 * 8 * (64 + 32)
    assert not is_shared(apart)


@for_targets
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_survives_copies(target: str, copied: Any) -> None:
    model = shared(target=target, init_weights=False)
    twin = copied(model)
    assert is_shared(twin) and is_shared(model)
    assert not {id(p) for p in twin.parameters()} & {id(p) for p in model.parameters()}
    assert torch.equal(output(twin, BATCH), output(model, BATCH))


@for_targets
def test_survives_deleting_another_adapter(target: str) -> None:
    model = shared(target=target, init_weights=False)
    expected = output(model, BATCH)
    model.add_adapter("other", HiWiConfig(r=2, share=True, target=target))
    assert is_shared(model, "other")
    ours, others = ({id(n) for layer in networks(model, name).values() for n in layer} for name in ("default", "other"))
    assert not ours & others
    model.delete_adapter("other")
    assert is_shared(model) and torch.equal(output(model, BATCH), expected)
    assert model.get_nb_trainable_parameters()[0] == 2 * 8 * (64 + 32)


@for_targets
def test_what_it_adds_differs_between_modules(target: str) -> None:
    model = shared(target=target, init_weights=False)
    layers = [m for m in model.modules() if isinstance(m, HiWiLayer)]
    found = [layer.delta("default") for layer in layers]
    for i, delta in enumerate(found):
        assert delta.any()
        assert not any(delta.shape == other.shape and torch.equal(delta, other) for other in found[:i])

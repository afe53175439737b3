"""Batches that mix adapters: each bottleneck runs on its own examples, and nothing else is touched.

That a mixed batch equals each task alone, with beams and choices too, stands in `test_contract`.
"""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from backbones import build, inputs, output
from models import adapted, config
from peft_aot import HoulsbyConfig, HoulsbyLayer

TASK = "FEATURE_EXTRACTION"
ADAPTERS = ("default", "other", "idle")


def model_of_three() -> PeftModel:
    model = adapted("bert", TASK, method="houlsby")
    for seed, name in enumerate(ADAPTERS[1:]):
        torch.manual_seed(seed)
        model.add_adapter(name, config("bert", TASK, "houlsby", r=2 + seed))
    return model.eval()


def test_each_adapter_runs_on_its_own_examples_only() -> None:
    model = model_of_three()
    seen: dict[str, list[int]] = {name: [] for name in ADAPTERS}
    for layer in model.base_model.layers():
        for name in ADAPTERS:
            layer.houlsby_down[name].register_forward_hook(lambda m, args, y, name=name: seen[name].append(len(y)))
    output(model, inputs("bert", TASK, batch=5), adapter_names=["other", "default", "__base__", "other", "other"])
    assert seen == {"default": [1] * 4, "other": [3] * 4, "idle": []}


def test_rows_without_an_adapter_are_those_of_the_backbone_bit_for_bit() -> None:
    model, batch = model_of_three(), inputs("bert", TASK, batch=4)
    names = ["__base__", "other", "default", "__base__"]
    with torch.no_grad():
        found, bare = output(model, batch, adapter_names=names), output(build("bert", TASK), batch)
    assert torch.equal(found[0], bare[0]) and torch.equal(found[3], bare[3])
    assert not torch.allclose(found[1], bare[1], atol=1e-3) and not torch.allclose(found[2], bare[2], atol=1e-3)


def layer_of_two(width: int = 6) -> HoulsbyLayer:
    module = nn.Sequential(nn.Linear(3, width)).double()
    fields = {"target_modules": ["0"], "init_weights": False}
    model = get_peft_model(module, HoulsbyConfig(r=3, **fields))
    model.add_adapter("other", HoulsbyConfig(r=2, **fields))
    (layer,) = model.base_model.layers()
    return layer


@settings(deadline=None, max_examples=50)
@given(st.lists(st.sampled_from(["default", "other", "__base__"]), min_size=1, max_size=6), st.booleans())
def test_any_batch_equals_the_loop_over_its_examples(names: list[str], with_tokens: bool) -> None:
    torch.manual_seed(0)
    layer = layer_of_two()
    y = torch.randn(len(names), *[4] * with_tokens, 6, dtype=torch.float64)
    before = y.clone()

    def gradients(run: Tensor) -> list[Tensor | None]:
        wanted = [p for p in layer.parameters() if p.requires_grad]
        return list(torch.autograd.grad(run.sin().sum(), wanted, allow_unused=True)) if run.requires_grad else []

    layer.set_requires_grad(["default", "other"])
    each = [y[i] if n == "__base__" else y[i] + layer.bottleneck(n, y[i]) for i, n in enumerate(names)]
    found, expected = layer.after_mixed(y, tuple(names)), torch.stack(each)
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-12)
    assert torch.equal(y, before), "a module may need its own output later"
    for a, b in zip(gradients(found), gradients(expected), strict=True):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-12)


def test_an_example_whose_adapter_is_elsewhere_is_left_alone() -> None:
    layer = layer_of_two()
    layer.delete_adapter("other")  # as on a layer that was never given it
    y = torch.randn(2, 6, dtype=torch.float64)
    found = layer.after_mixed(y, ("other", "default"))
    assert torch.equal(found[0], y[0]) and not torch.equal(found[1], y[1])


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_compiles_without_graph_breaks(name: str) -> None:
    model = adapted(name, TASK, method="houlsby")
    torch.manual_seed(4)
    model.add_adapter("other", config(name, TASK, "houlsby", r=2))
    model.eval()
    torch.compiler.reset()
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    batch, more = inputs(name, TASK), {"use_cache": False} if name == "t5" else {}
    with torch.no_grad():
        for names in (["default", "other", "__base__"], ["other", "other", "default"], None):
            expected = output(model, batch, adapter_names=names, **more)
            torch.testing.assert_close(output(fast, batch, adapter_names=names, **more), expected, atol=1e-5, rtol=1e-5)

"""What bottlenecks compute: the formula written out on the bare backbone, sums of adapters, dropout, number formats."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import get_peft_model
from torch import Tensor, nn

from backbones import CONFIGS, DECODERS, ENCODER_DECODERS, build, inputs, output
from models import adapted, config
from peft_aot import HoulsbyConfig, HoulsbyLayer
from peft_aot.ops import ACTIVATIONS
from written import check_gradients, naive_output

FORMULAS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": lambda h: h * 0.5 * (1 + torch.erf(h / math.sqrt(2))),
    "relu": lambda h: h * (h > 0),
    "silu": lambda h: h / (1 + torch.exp(-h)),
    "tanh": lambda h: (torch.exp(2 * h) - 1) / (torch.exp(2 * h) + 1),
    "identity": lambda h: h,
}


def task_of(name: str) -> str:
    return "CAUSAL_LM" if name in DECODERS else "SEQ_2_SEQ_LM" if name in ENCODER_DECODERS else "SEQ_CLS"


def naive(y: Tensor, w_down: Tensor, b_down: Tensor, w_up: Tensor, b_up: Tensor, activation: str) -> Tensor:
    """One bottleneck; `nn.Linear` stores W_down (D, R) as (R, D) and W_up (R, D) as (D, R)."""
    hidden = FORMULAS[activation](torch.einsum("...d,rd->...r", y, w_down) + b_down)
    return torch.einsum("...r,dr->...d", hidden, w_up) + b_up


def check(name: str, adapters: tuple[str, ...] = ("default",), **fields: Any) -> None:
    """Compare outputs and gradients with hooks on the bare backbone, in float64, all parameters being random."""
    task = task_of(name)
    bare, batch = build(name, task).double(), inputs(name, task)
    model = get_peft_model(build(name, task).double(), config(name, task, "houlsby", **fields)).eval()
    for more in adapters[1:]:
        model.add_adapter(more, config(name, task, "houlsby", r=3, **fields))
    model.base_model.set_adapter(list(adapters))
    factors = {n.removeprefix("base_model.model."): p for n, p in model.named_parameters() if "houlsby_" in n}
    torch.manual_seed(5)
    with torch.no_grad():
        for p in factors.values():
            p.copy_(torch.randn_like(p) * 0.3)
    owners = sorted({key.partition(".houlsby_layer.")[0] for key in factors})
    for owner in owners:

        def add(module: nn.Module, args: tuple[Any, ...], y: Tensor, owner: str = owner) -> Tensor:
            result = y
            for adapter in adapters:
                prefix = f"{owner}.houlsby_layer.houlsby_"
                four = (factors[f"{prefix}{p}.{adapter}.{k}"] for p in ("down", "up") for k in ("weight", "bias"))
                result = result + naive(y, *four, model.peft_config["default"].activation)
            return result

        bare.get_submodule(owner).register_forward_hook(add)
    assert len(owners) >= 4
    kwargs: dict[str, Any] = {} if task == "SEQ_CLS" else {"use_cache": False}
    check_gradients(model, batch, lambda: naive_output(bare, model, {}, batch, **kwargs), **kwargs)
    assert {n for n, p in model.named_parameters() if p.requires_grad} >= {f"base_model.model.{n}" for n in factors}


@pytest.mark.parametrize("name", CONFIGS)
def test_output_and_gradients_equal_the_naive_reference(name: str) -> None:
    check(name)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation(activation: str) -> None:
    check("bert", activation=activation)


def test_several_active_adapters_each_take_the_output_of_the_projection() -> None:
    check("llama", adapters=("default", "other"))


def layer(width: int, **fields: Any) -> HoulsbyLayer:
    """One layer, beside a projection to `width`."""
    module = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
    model = get_peft_model(module, HoulsbyConfig(target_modules=["0"], **fields))
    (found,) = model.base_model.layers()
    return found


def test_starts_as_the_identity_with_hidden_units_of_the_size_of_the_output() -> None:
    torch.manual_seed(0)
    found = layer(width=400, r=100)
    down, up = found.houlsby_down["default"], found.houlsby_up["default"]
    assert down.weight.shape == (100, 400) and up.weight.shape == (400, 100)
    assert not (down.bias.any() or up.weight.any() or up.bias.any())
    assert float(down.weight.detach().std()) == pytest.approx(400**-0.5, rel=0.02)
    for p in layer(width=4, r=2, init_weights=False).houlsby_up["default"].parameters():
        assert p.all()


def test_dropout_is_on_the_bottleneck_and_in_training_only() -> None:
    found = layer(width=4, r=4, dropout=0.75, activation="identity")
    with torch.no_grad():
        found.houlsby_down["default"].weight.zero_()
        found.houlsby_down["default"].bias.fill_(1.0)
        found.houlsby_up["default"].weight.copy_(torch.eye(4))
        found.houlsby_up["default"].bias.fill_(10.0)
    y = torch.randn(50, 4)
    assert set(found.train().bottleneck("default", y).unique().tolist()) == {10.0, 14.0}
    assert found.eval().bottleneck("default", y).unique().tolist() == [11.0]


def test_dropout_follows_the_mode_of_the_model() -> None:
    model = adapted("llama", "CAUSAL_LM", method="houlsby", dropout=0.5)  # llama has no dropout of its own
    batch = inputs("llama", "CAUSAL_LM")
    assert torch.equal(output(model, batch), output(model, batch))
    model.train()
    assert not torch.allclose(output(model, batch), output(model, batch), atol=1e-3)
    model.add_adapter("later", config("llama", "CAUSAL_LM", "houlsby", dropout=0.5))
    assert all(found.houlsby_dropout["later"].training for found in model.base_model.layers())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_float32_adapter_computes_in_float32_beside_a_half_precision_backbone(
    dtype: torch.dtype, tolerance: dict[torch.dtype, float]
) -> None:
    torch.manual_seed(0)
    found, y = layer(width=64, r=8, init_weights=False), torch.randn(5, 64).to(dtype)
    down, up = found.houlsby_down["default"], found.houlsby_up["default"]
    exact = naive(y.float(), down.weight, down.bias, up.weight, up.bias, "gelu")
    added = found.bottleneck("default", y)
    assert added.dtype == found.after(y, y).dtype == dtype
    assert found.after_mixed(y, ("default",) * 5).dtype == dtype
    # one rounding, that of the result
    torch.testing.assert_close(added.float(), exact, atol=1e-6, rtol=torch.finfo(dtype).eps / 2 * 1.01)
    torch.testing.assert_close(
        found.after(y, y).float(), y.float() + exact, atol=tolerance[dtype], rtol=tolerance[dtype]
    )


def test_nothing_is_left_of_a_deleted_adapter() -> None:
    found = layer(width=4, r=2)
    found.delete_adapter("default")
    assert not found.state_dict() and not found.houlsby_dropout and not found.houlsby_activation
    assert not found.module._forward_hooks and not found.module._forward_pre_hooks

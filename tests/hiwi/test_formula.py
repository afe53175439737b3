"""Outputs and gradients, in float64, against a bare backbone with the formula written out for its parameters."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from backbones import build, inputs, output
from peft_aot import HiWiConfig
from peft_aot.ops import ACTIVATIONS

TASK = "FEATURE_EXTRACTION"
CASES = [
    (name, target, share)
    for name, target in [
        ("bert", "bias"),
        ("gpt2", "bias"),
        ("bert", "weight"),
        ("gpt2", "weight"),
        ("llama", "weight"),
    ]
    for share in (False, True)
]
over_cases = pytest.mark.parametrize(("name", "target", "share"), CASES)


def adapted(name: str, dtype: torch.dtype = torch.float64, **fields: Any) -> PeftModel:
    backbone = build(name, TASK).to(dtype)
    torch.manual_seed(2)
    fields = {"r": 8, "init_weights": False, "activation": "gelu", **fields}
    return get_peft_model(backbone, HiWiConfig(task_type=TASK, **fields)).eval()


def naive(model: PeftModel, name: str, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """What a bare backbone returns with `v' = v + f(v W_down) W_up` for each adapted bias or row, and the leaves."""
    config, bare = model.peft_config["default"], build(name, TASK).double()
    f = ACTIVATIONS[config.activation]
    leaves = {
        key.removeprefix("base_model.model."): value.detach().clone().requires_grad_()
        for key, value in model.named_parameters(remove_duplicate=False)
        if ".hiwi_network.default." in key
    }
    if config.share:  # one pair of leaves for all modules of a width
        for key in list(leaves):
            leaves[key] = next(v for k, v in leaves.items() if k[-4:] == key[-4:] and v.shape == leaves[key].shape)
    changed = {}
    for path in {key.partition(".hiwi_layer.")[0] for key in leaves}:
        module = bare.get_submodule(path)
        down, up = (leaves[f"{path}.hiwi_layer.hiwi_network.default.{matrix}"] for matrix in ("down", "up"))
        values = module.get_parameter(config.target).detach()
        turned = config.target == "weight" and isinstance(module, Conv1D)
        rows = (values.T if turned else values).reshape(-1, len(down))
        rows = torch.stack([row + f(row @ down) @ up for row in rows])
        changed[f"{path}.{config.target}"] = rows.T if turned else rows.view(values.shape)
    call = torch.func.functional_call(bare, changed, (), batch)
    return call.last_hidden_state, leaves


@over_cases
def test_outputs_and_gradients(name: str, target: str, share: bool) -> None:
    model, batch = adapted(name, target=target, share=share), inputs(name, TASK)
    expected, leaves = naive(model, name, batch)
    found = output(model, batch)
    torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
    bare = output(build(name, TASK).double(), batch)
    assert (found - bare).abs().max() > 1e-2, "the change must matter, or this test could not fail"
    weights = torch.randn(found.shape, dtype=found.dtype, generator=torch.Generator().manual_seed(4))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    trained = {n.removeprefix("base_model.model."): p for n, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == (4 if share else len(leaves)) and set(trained) <= set(leaves)
    for key, parameter in trained.items():
        assert leaves[key].grad.abs().max() > 1e-3, key
        torch.testing.assert_close(parameter.grad, leaves[key].grad, atol=1e-9, rtol=1e-9, msg=key)


@over_cases
def test_follows_steps_of_an_optimizer(name: str, target: str, share: bool) -> None:
    model, batch = adapted(name, target=target, share=share), inputs(name, TASK)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    before = output(model, batch).detach()
    for _ in range(2):
        optimizer.zero_grad()
        output(model, batch)[:, 0, :5].sum().backward()
        optimizer.step()
        found = output(model, batch)
        torch.testing.assert_close(found, naive(model, name, batch)[0], atol=1e-9, rtol=1e-9)
    assert (found - before).abs().max() > 1e-3


@pytest.mark.parametrize("target", ["bias", "weight"])
@pytest.mark.parametrize("reentrant", [None, True, False])
def test_gradient_checkpointing(target: str, reentrant: bool | None) -> None:
    model, batch = adapted("bert", target=target), inputs("bert", TASK)
    expected, leaves = naive(model, "bert", batch)
    expected.square().sum().backward()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    if reentrant is not None:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": reentrant})
    model.train()
    found = output(model, batch)
    with torch.no_grad():
        output(model, inputs("bert", TASK, seed=9))  # another forward before the backward must not matter
    found.square().sum().backward()
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            grad = leaves[key.removeprefix("base_model.model.")].grad
            torch.testing.assert_close(parameter.grad, grad, atol=1e-9, rtol=1e-9, msg=key)


@pytest.mark.parametrize(
    ("name", "target", "share"), [("bert", "bias", True), ("bert", "weight", True), ("gpt2", "weight", False)]
)
def test_compiles_without_graph_breaks(name: str, target: str, share: bool) -> None:
    torch._dynamo.reset()  # its limit of recompilations counts those of other tests
    model, batch = adapted(name, target=target, share=share), inputs(name, TASK)
    extra = {"use_cache": False} if name != "bert" else {}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    for _ in range(2):  # what the optimizer changes must be seen, in training and in evaluation
        with torch.no_grad():
            torch.testing.assert_close(output(compiled, batch, **extra), naive(model, name, batch)[0])
        expected, leaves = naive(model, name, batch)
        expected.square().sum().backward()
        optimizer.zero_grad()
        found = output(compiled, batch, **extra)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=1e-9)
        found.square().sum().backward()
        for key, parameter in model.named_parameters():
            if parameter.requires_grad:
                grad = leaves[key.removeprefix("base_model.model.")].grad
                torch.testing.assert_close(parameter.grad, grad, atol=1e-9, rtol=1e-9, msg=key)
        optimizer.step()


@pytest.mark.parametrize("target", ["bias", "weight"])
@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_autocast(name: str, target: str) -> None:
    batch = inputs(name, TASK)
    full, model = (adapted(name, torch.float32, target=target) for _ in range(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = output(model, batch)
        found.float().square().mean().backward()
        written = {n: p.clone() for n, p in model.named_parameters()}
    expected = output(full, batch)
    expected.square().mean().backward()
    torch.testing.assert_close(found.float(), expected, atol=0.1 * float(expected.detach().abs().max()), rtol=0)
    for (key, a), (_, b) in zip(model.named_parameters(), full.named_parameters(), strict=True):
        assert torch.equal(written[key], b), "autocast must not show in what is written"
        if a.requires_grad:
            assert a.grad.dtype == torch.float32
            torch.testing.assert_close(a.grad, b.grad, atol=0.1 * float(b.grad.abs().max()), rtol=0.1, msg=key)


@pytest.mark.parametrize("target", ["bias", "weight"])
def test_several_active_adapters_add_up(target: str) -> None:
    model, batch = adapted("bert", target=target), inputs("bert", TASK)
    torch.manual_seed(5)
    model.add_adapter("other", HiWiConfig(r=4, init_weights=False, target=target, task_type=TASK))
    bare = build("bert", TASK).double()
    path = "encoder.layer.0.output.dense"
    original = bare.get_submodule(path).get_parameter(target)
    layer = model.get_base_model().get_submodule(f"{path}.hiwi_layer")
    total = original.clone()
    for name in ("default", "other"):  # each is fed with the original, whatever the other adds
        total += layer.network(name)(original)
    for names in (["default", "other"], ["other", "default"]):
        model.base_model.set_adapter(names)
        with model.disable_adapter():
            assert torch.equal(layer.parameter(target), original)
        torch.testing.assert_close(layer.parameter(target), total, atol=1e-12, rtol=1e-12)
        output(model, batch).sum().backward()
        assert all(p.grad is not None for p in layer.parameters() if p.requires_grad)
    assert not torch.equal(total, original)


@pytest.mark.parametrize("target", ["bias", "weight"])
def test_training_goes_on_after_an_evaluation_under_inference_mode(target: str) -> None:
    model, batch = adapted("bert", target=target), inputs("bert", TASK)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    output(model, batch).square().sum().backward()
    optimizer.step()
    with torch.inference_mode():
        evaluated = output(model, batch)  # writes what the step has changed
    optimizer.zero_grad()
    expected, leaves = naive(model, "bert", batch)
    expected.square().sum().backward()
    output(model, batch).square().sum().backward()
    torch.testing.assert_close(evaluated.clone(), expected.detach(), atol=1e-9, rtol=1e-9)
    for key, parameter in model.named_parameters():
        if parameter.requires_grad:
            grad = leaves[key.removeprefix("base_model.model.")].grad
            torch.testing.assert_close(parameter.grad, grad, atol=1e-9, rtol=1e-9, msg=key)

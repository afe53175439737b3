"""Gradients of single entries against the dense gradient, gathered."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from peft_aot.pafi import gradient
from peft_aot.pafi.gradient import SparseEntries, carry_gradient, sampled_product


def linear(x: Tensor, weight: Tensor, bias: Tensor, transposed: bool) -> Tensor:
    return x @ (weight if transposed else weight.T) + bias


@st.composite
def some(draw: st.DrawFn, size: int) -> Tensor:
    """Ascending indices below `size`; none, some or all."""
    return torch.tensor(sorted(draw(st.sets(st.integers(0, size - 1)))), dtype=torch.int64)


@settings(deadline=None, max_examples=150)
@given(st.data(), st.booleans(), st.booleans(), st.booleans(), st.integers(1, 4), st.integers(0, 2**16))
def test_same_as_the_dense_gradient(
    data: st.DataObject, transposed: bool, with_weight: bool, with_bias: bool, cut: int, seed: int
) -> None:
    leading = data.draw(st.lists(st.integers(0, 4), max_size=3), "leading")
    width, out = data.draw(st.integers(1, 5), "in"), data.draw(st.integers(1, 5), "out")
    generator = torch.Generator().manual_seed(seed)
    shapes = [(*leading, width), (width, out) if transposed else (out, width), (out,), (*leading, out)]
    x, weight, bias, coefficients = (torch.randn(s, dtype=torch.float64, generator=generator) for s in shapes)
    chosen, chosen_bias = data.draw(some(weight.numel()), "weight"), data.draw(some(out), "bias")

    dense = [tensor.clone().requires_grad_() for tensor in (x, weight, bias)]
    (linear(*dense, transposed).sin() * coefficients).sum().backward()
    expected = dense[1].grad.flatten()[chosen], dense[2].grad[chosen_bias]

    x.requires_grad_()
    values = weight.flatten()[chosen].requires_grad_(), bias[chosen_bias].requires_grad_()
    y = linear(x, weight, bias, transposed)
    carried = carry_gradient(
        y,
        x,
        (values[0], SparseEntries.of(chosen, weight.shape, transposed)) if with_weight else None,
        (values[1], chosen_bias) if with_bias else None,
    )
    assert torch.equal(carried, y) and carried.data_ptr() == y.data_ptr()
    with patch.object(gradient, "SLICE", cut):
        (carried.sin() * coefficients).sum().backward()
    torch.testing.assert_close(x.grad, dense[0].grad, atol=1e-10, rtol=1e-10)
    for value, want, there in zip(values, expected, (with_weight, with_bias), strict=True):
        if there:
            torch.testing.assert_close(value.grad, want, atol=1e-10, rtol=1e-10)
        else:
            assert value.grad is None


def test_frozen_values_get_no_gradient() -> None:
    x, entries = torch.ones(2, 3), SparseEntries.of(torch.tensor([1, 4]), (2, 3), False)
    values, bias = torch.zeros(2), torch.zeros(1, requires_grad=True)
    y = carry_gradient(torch.ones(2, 2), x, (values, entries), (bias, torch.tensor([1])))
    with patch.object(gradient, "sampled_product", None):  # would fail if it were called
        y.sum().backward()
    assert values.grad is None and bias.grad.tolist() == [2.0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
def test_values_keep_their_type(dtype: torch.dtype, tolerance: dict[torch.dtype, float]) -> None:
    torch.manual_seed(0)
    x, y, gy = (torch.randn(2, 300, n).to(dtype) for n in (6, 4, 4))
    chosen = torch.tensor([0, 5, 6, 20])
    expected = (gy.double().flatten(0, 1).T @ x.double().flatten(0, 1)).flatten()[chosen]
    entries = SparseEntries.of(chosen, (4, 6), False)
    values, bias = torch.zeros(4, requires_grad=True), torch.zeros(2, requires_grad=True)
    carried = carry_gradient(y.requires_grad_(), x, (values, entries), (bias, torch.tensor([1, 3])))
    carried.backward(gy)
    assert carried.dtype == y.grad.dtype == dtype and values.grad.dtype == bias.grad.dtype == torch.float32
    # summed in float32: no rounding of partial sums to 8 or 11 bits
    torch.testing.assert_close(values.grad.double(), expected, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(bias.grad.double(), gy.double().sum((0, 1))[[1, 3]], atol=1e-4, rtol=1e-5)


class Carrier(nn.Module):
    """A frozen linear layer whose hook carries the gradient of two weights and two biases, and what surrounds it."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear = nn.Linear(5, 8).requires_grad_(False)
        self.indices, self.bias_indices = torch.tensor([3, 17]), torch.tensor([0, 6])
        self.values = nn.Parameter(self.linear.weight.flatten()[self.indices])
        self.bias_values = nn.Parameter(self.linear.bias[self.bias_indices])
        self.entries = SparseEntries.of(self.indices, (8, 5), False)
        self.linear.register_forward_hook(self.carry)

    def carry(self, module: nn.Module, args: tuple[Tensor], y: Tensor) -> Tensor:
        return carry_gradient(y, args[0], (self.values, self.entries), (self.bias_values, self.bias_indices))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x.tanh()).sin()

    def gradients(self, loss: Tensor, x: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, [self.values, self.bias_values, x]))


def given_and_expected() -> tuple[Carrier, Tensor, list[Tensor]]:
    model = Carrier()
    x = torch.randn(3, 4, 5, requires_grad=True)
    weight, bias = (p.clone().requires_grad_() for p in (model.linear.weight, model.linear.bias))
    dense = torch.autograd.grad(linear(x.tanh(), weight, bias, False).sin().sum(), [weight, bias, x])
    return model, x, [dense[0].flatten()[model.indices], dense[1][model.bias_indices], dense[2]]


def test_compiled_in_one_graph() -> None:
    model, x, expected = given_and_expected()
    torch.compiler.reset()
    fast = torch.compile(model, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(model.gradients(fast(x).sum(), x), expected)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_under_gradient_checkpointing(use_reentrant: bool) -> None:
    model, x, expected = given_and_expected()
    checkpoint(model, x, use_reentrant=use_reentrant).sum().backward()
    torch.testing.assert_close([model.values.grad, model.bias_values.grad, x.grad], expected)


def test_under_autocast() -> None:
    model, x, expected = given_and_expected()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(x).sum()
    found = model.gradients(loss, x)
    assert [g.dtype for g in found] == [torch.float32] * 3
    torch.testing.assert_close(found, expected, atol=5e-2, rtol=5e-2)


def test_output_may_be_changed_in_place() -> None:
    model, x, _ = given_and_expected()
    found = model.gradients(model.linear(x.tanh()).relu_().square().sum(), x)
    expected = model.gradients(model.linear(x.tanh()).relu().square().sum(), x)
    torch.testing.assert_close(found, expected)
    # and a module that needs its own output for its backward is told, not given a wrong gradient
    z = x.exp()
    loss = carry_gradient(z, x, None, (model.bias_values, model.bias_indices // 2)).mul_(2).sum()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_memory_is_that_of_the_entries() -> None:
    size = 200_000  # a dense gradient would take 160 GB
    chosen = torch.tensor([0, size * size // 2, size * size - 1])
    entries = SparseEntries.of(chosen, (size, size), False)
    gy, x = torch.full((2, size), 3.0), torch.full((2, size), 0.5)
    assert sampled_product(gy, x, entries.crow, entries.columns).tolist() == [3.0, 3.0, 3.0]


def test_operation_is_described_to_the_compiler() -> None:
    entries = SparseEntries.of(torch.tensor([2, 3]), (4, 2), False)
    for dtype in (torch.float32, torch.bfloat16):
        inputs = torch.ones(3, 4, dtype=dtype), torch.ones(3, 2, dtype=dtype), entries.crow, entries.columns
        torch.library.opcheck(sampled_product, inputs)


def test_torch_does_not_warn_of_sparse_tensors() -> None:
    # once per process, so that it takes a new one; the file alone, since the package would import much more
    code = (
        "import torch; from gradient import *; entries = SparseEntries.of(torch.tensor([0]), (1, 1), False);"
        "print(sampled_product(torch.ones(1, 1), torch.ones(1, 1), entries.crow, entries.columns))"
    )
    folder = Path(gradient.__file__).parent
    found = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    assert found.stdout == "tensor([1.])\n" and "parse" not in found.stderr


def test_entries_move() -> None:
    entries = SparseEntries.of(torch.tensor([1, 2]), (2, 2), True).to("meta")
    assert entries.crow.is_meta and entries.columns.is_meta and entries.transposed


@pytest.mark.parametrize("shape", [(4,), (2, 2, 1)])
def test_only_matrices(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"expected a weight with two dimensions, got shape .*; leave it out with"):
        SparseEntries.of(torch.tensor([0]), shape, False)


@pytest.mark.parametrize(
    "indices",
    [torch.tensor(i) for i in ([1, 0], [1, 1], [-1, 2], [0, 6], [[0, 1]])] + [torch.tensor([0, 1], dtype=torch.int32)],
)
def test_indices_that_do_not_ascend_in_the_weight_are_refused(indices: Tensor) -> None:
    with pytest.raises(ValueError, match=r"expected ascending flat indices \(k,\) int64 below 6, got .*; sort them"):
        SparseEntries.of(indices, (2, 3), False)

"""The carried gradient against that of the whole weight, and that nothing of the weight's size is formed."""

from __future__ import annotations

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from peft_aot.hiwi.gradient import carry_gradient


def tensors(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> tuple[torch.Tensor, ...]:
    """x (..., in), W (out, in), H (out, R), W_up (R, in), a gradient of y (..., out)."""
    torch.manual_seed(0)
    inner, outer, rank = 6, 5, 2
    sizes = ((*shape, inner), (outer, inner), (outer, rank), (rank, inner), (*shape, outer))
    return tuple(torch.randn(size, dtype=dtype) for size in sizes)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (2, 1, 3), (0,)])
def test_equals_autograd_through_the_whole_weight(shape: tuple[int, ...]) -> None:
    x, w, hidden, up, gy = tensors(shape)
    dense = [t.clone().requires_grad_() for t in (x, hidden, up)]
    (dense[0] @ (w + dense[1] @ dense[2]).T).backward(gy)
    low = [t.clone().requires_grad_() for t in (x, hidden, up)]
    y = low[0] @ (w + hidden @ up).T
    found = carry_gradient(y, low[0], low[1], low[2])
    assert torch.equal(found, y)
    found.backward(gy)
    for a, b in zip(low, dense, strict=True):
        torch.testing.assert_close(a.grad, b.grad, atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("wanted", [(True, False), (False, True)])
def test_only_what_is_wanted(wanted: tuple[bool, bool]) -> None:
    x, w, hidden, up, gy = tensors((3,))
    hidden.requires_grad_(wanted[0])
    up.requires_grad_(wanted[1])
    carry_gradient(x @ w.T, x, hidden, up).backward(gy)
    assert (hidden.grad is not None, up.grad is not None) == wanted


def test_half_precision_output_and_full_precision_factors() -> None:
    x, w, hidden, up, gy = tensors((40,), torch.float32)
    hidden.requires_grad_()
    up.requires_grad_()
    y = (x @ w.T).bfloat16()
    carry_gradient(y, x, hidden, up).backward(gy.bfloat16())
    assert hidden.grad.dtype == up.grad.dtype == torch.float32
    torch.testing.assert_close(hidden.grad, gy.T @ (x @ up.T), atol=0.5, rtol=0.05)
    torch.testing.assert_close(up.grad, (gy @ hidden).T @ x, atol=0.5, rtol=0.05)


class Largest(TorchDispatchMode):
    """Notes the most elements that any operation returns."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.elements = max(self.elements, result.numel())
        return result


def test_forms_no_gradient_of_the_weight() -> None:
    x, gy = torch.randn(3, 200), torch.randn(3, 100)
    hidden, up = torch.randn(100, 2, requires_grad=True), torch.randn(2, 200, requires_grad=True)
    found = carry_gradient(torch.zeros(3, 100), x, hidden, up)
    with Largest() as seen:
        found.backward(gy)
    assert hidden.grad is not None
    assert 0 < seen.elements <= 3 * 200


def test_the_output_may_be_changed_in_place() -> None:
    x, w, hidden, up, gy = tensors((3,))
    hidden.requires_grad_()
    found = carry_gradient(x @ w.T, x, hidden, up)
    found += 1
    found.backward(gy)
    torch.testing.assert_close(hidden.grad, gy.T @ (x @ up.T))

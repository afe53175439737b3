"""The gradient of a change of rank R to a weight, without the gradient of the weight.

With `W' = W + H W_up` the output `y = x W'^T` has the summand `x W_up^T H^T`, so that the gradients of H and W_up are
products with a side of R: nothing of the weight's size is formed. This file does not know where H comes from, nor who
writes W' into the module.

Letters: N positions, R rank.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def carry_gradient(y: Tensor, x: Tensor, hidden: Tensor, up: Tensor) -> Tensor:
    """Return y, and let its gradient flow into the factors of a change that stands in the weight already.

    Nothing flows into x, which the module's own backward serves.

    Args:
        y: (..., out), the output of a linear module.
        x: (..., in), its input.
        hidden: H (out, R).
        up: W_up (R, in).

    Returns:
        y, sharing its memory.
    """
    carried: Tensor = _CarryGradient.apply(y, x, hidden, up)  # type: ignore[no-untyped-call]
    return carried


class _CarryGradient(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, x: Tensor, hidden: Tensor, up: Tensor) -> Tensor:
        # not `view_as`: torch lets nobody change a view made in here in place, as models do with a layer's output
        return y.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, hidden, up = inputs
        ctx.save_for_backward(x, hidden, up)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, hidden, up = ctx.saved_tensors
        # in the precision of the module's own backward, which under autocast is not that of the factors
        outer = gy.reshape(-1, gy.shape[-1])
        inner = x.reshape(-1, x.shape[-1]).to(gy.dtype)
        hidden_gradient = up_gradient = None
        if ctx.needs_input_grad[2]:
            hidden_gradient = (outer.t() @ (inner @ up.t().to(gy))).to(hidden)
        if ctx.needs_input_grad[3]:
            up_gradient = ((outer @ hidden.to(gy)).t() @ inner).to(up)
        return gy, None, hidden_gradient, up_gradient

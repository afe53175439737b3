"""A written layer whose adapters change its module's bias, wherever that change comes from (BitFit, HiWi).

Since a bias is added to the output, an example's own bias is one row added to its own output: batches may mix adapters.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import FunctionCtx

from peft_aot.routing import BASE

from .written import Change, WrittenLayer


class _Carry(torch.autograd.Function):
    """The output as it is; its gradient, summed over positions, goes to the bias that it holds already."""

    @staticmethod
    def forward(output: Tensor, delta: Tensor) -> Tensor:
        return output.detach()  # not a view, which models could not change in place

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.dtype = inputs[1].dtype

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Any) -> tuple[Tensor, Tensor]:
        (gradient,) = gradients
        dtype: torch.dtype = ctx.dtype  # type: ignore[attr-defined]
        return gradient, gradient.sum(dim=tuple(range(gradient.ndim - 1)), dtype=dtype)


class BiasLayer(WrittenLayer):
    """See the module; a method says what its adapters add to the bias."""

    def delta(self, adapter_name: str) -> Tensor:
        """Compute what an adapter adds to the bias, (n,)."""
        raise NotImplementedError

    def changes(self, adapter_name: str) -> list[Change]:
        """Return the one change: of the whole bias."""
        return [Change("bias", None, self.delta(adapter_name))]

    def after(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Carry the gradient to the adapters that are trained."""
        for name in self.carrying():
            output = self.carry(name, inputs, output)
        return output

    def carry(self, adapter_name: str, inputs: Tensor, output: Tensor) -> Tensor:
        """Return the output, and let its gradient flow to an adapter."""
        carried: Tensor = _Carry.apply(output, self.delta(adapter_name))  # type: ignore[no-untyped-call]
        return carried

    def after_mixed(self, output: Tensor, names: tuple[str, ...]) -> Tensor:
        """Add to each example its own adapter's bias in place of the one that is written."""
        distinct = list(dict.fromkeys(names))
        written, original = self.parameter("bias").detach(), self.original("bias")
        exact = torch.promote_types(written.dtype, torch.float32)
        none = torch.zeros_like(original, dtype=exact)
        rows = torch.stack([self.delta(n).to(exact) if n != BASE and self.has(n) else none for n in distinct])
        rows = (rows + (original.to(exact) - written.to(exact))).to(output.dtype)
        each = rows[[distinct.index(name) for name in names]]
        return output + each.view(len(names), *[1] * (output.ndim - 2), -1)

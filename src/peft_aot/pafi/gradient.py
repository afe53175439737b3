"""The gradient of a few entries of a weight, without the gradient of the weight.

For `y = x W^T + b`, entry (i, j) of W has the gradient `sum_n gy[n, i] x[n, j]`: one element of a matrix product, of
which the others need not be computed. PaFi (arXiv 2305.16742) trains 0.5 % of them. This file does not know how the
entries were chosen, nor who writes their values into the weight.

Letters: N positions, k entries.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

# On a CPU torch copies its inputs transposed, which costs more than the products do; slices of so many positions stay
# in the cache, and keep the copies small.
SLICE = 256


@dataclass(frozen=True, eq=False)
class SparseEntries:
    """Where in a matrix some entries are, in compressed rows (CSR).

    Attributes:
        crow: (rows + 1,) int64, where each row's entries begin.
        columns: (k,) int64, the column of each entry.
        transposed: True for a weight stored as (in, out), as in transformers' Conv1D; False for (out, in).
    """

    crow: Tensor
    columns: Tensor
    transposed: bool

    @classmethod
    def of(cls, indices: Tensor, shape: Sequence[int], transposed: bool) -> SparseEntries:
        """Compress ascending flat indices (k,) int64 into a weight of `shape`, as stored.

        Raises:
            ValueError: A weight that is no matrix, or indices that do not ascend within it.
        """
        if len(shape) != 2:
            raise ValueError(
                f"expected a weight with two dimensions, got shape {tuple(shape)}; leave it out with exclude_modules"
            )
        rows, width = shape
        # torch reads past the end of its inputs, or sums the wrong products, if these are not so
        ascending = indices.ndim == 1 and indices.dtype == torch.int64 and bool((indices.diff() > 0).all())
        if not ascending or (len(indices) and not 0 <= int(indices[0]) <= int(indices[-1]) < rows * width):
            raise ValueError(
                f"expected ascending flat indices (k,) int64 below {rows * width}, got {indices}; sort them, each once"
            )
        starts = torch.arange(rows + 1, device=indices.device) * width
        return cls(torch.searchsorted(indices, starts), indices % max(width, 1), transposed)

    def to(self, device: torch.device | str) -> SparseEntries:
        """Return the same entries on a device."""
        return SparseEntries(self.crow.to(device), self.columns.to(device), self.transposed)


def carry_gradient(
    y: Tensor,
    x: Tensor,
    weight: tuple[Tensor, SparseEntries] | None = None,
    bias: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """Return y, and let its gradient flow into the values that some entries of a weight and a bias were given.

    The values take no part in y: they must stand in the weight already. Nothing flows into x, which the module's own
    backward serves.

    Args:
        y: (..., out), the output of a linear module.
        x: (..., in), its input.
        weight: The values (k,) of the weight's entries, and where they are.
        bias: The values (k,) of the bias's entries, and their indices (k,) int64.

    Returns:
        y, sharing its memory.
    """
    weight_values, entries = weight or (None, None)
    bias_values, bias_indices = bias or (None, None)
    crow, columns, transposed = (entries.crow, entries.columns, entries.transposed) if entries else (None, None, False)
    carried: Tensor = _CarryGradient.apply(  # type: ignore[no-untyped-call]
        y, x, weight_values, bias_values, crow, columns, transposed, bias_indices
    )
    return carried


class _CarryGradient(torch.autograd.Function):
    @staticmethod
    def forward(y: Tensor, *_: Any) -> Tensor:
        # not `view_as`: torch lets nobody change a view made in here in place, as models do with a layer's output
        return y.detach()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, x, weight_values, _, crow, columns, ctx.transposed, bias_indices = inputs
        ctx.save_for_backward(None if weight_values is None else x, crow, columns, bias_indices)

    @staticmethod
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor | None, ...]:
        x, crow, columns, bias_indices = ctx.saved_tensors
        weight_gradient = bias_gradient = None
        flat = gy.flatten(0, -2) if gy.ndim > 1 else gy.unsqueeze(0)
        if ctx.needs_input_grad[2]:
            features = x.flatten(0, -2) if x.ndim > 1 else x.unsqueeze(0)
            rows, cols = (features, flat) if ctx.transposed else (flat, features)
            weight_gradient = sampled_product(rows, cols, crow, columns)
        if ctx.needs_input_grad[3]:
            total = flat.sum(0, dtype=torch.promote_types(gy.dtype, torch.float32))
            bias_gradient = total[bias_indices]
        # autograd gives each gradient the type of its values
        return gy, None, weight_gradient, bias_gradient, None, None, None, None


@torch.library.custom_op("peft_aot::sampled_product", mutates_args=())
def sampled_product(rows: Tensor, cols: Tensor, crow: Tensor, columns: Tensor) -> Tensor:
    """Compute some elements of `rows^T cols`, in memory proportional to their number.

    Shapes: rows (N, R), cols (N, C), crow (R + 1,) and columns (k,) as in `SparseEntries`; returns (k,), in float32 or,
    if an input is, float64.
    """
    dtype = _accumulator(rows, cols)
    values = rows.new_zeros(columns.shape, dtype=dtype)
    if not len(rows) or not len(columns):  # sparse kernels differ in what they make of nothing
        return values
    _silence_beta_warning()
    size = (rows.shape[1], cols.shape[1])
    sums = torch.sparse_csr_tensor(crow, columns, values, size, check_invariants=False)
    step = SLICE if rows.device.type == "cpu" else len(rows)
    for a, b in zip(torch.split(rows, step), torch.split(cols, step), strict=True):
        sums = torch.sparse.sampled_addmm(sums, a.to(dtype).t(), b.to(dtype))
    return sums.values()


@sampled_product.register_fake
def _(rows: Tensor, cols: Tensor, crow: Tensor, columns: Tensor) -> Tensor:
    return rows.new_empty(columns.shape, dtype=_accumulator(rows, cols))


def _accumulator(a: Tensor, b: Tensor) -> torch.dtype:
    return torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)


@functools.cache
def _silence_beta_warning() -> None:
    """Use up torch's warning, once per process, that sparse CSR is in beta; `sampled_addmm` is all we use of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta state", UserWarning)
        empty = torch.zeros(0, dtype=torch.int64)
        torch.sparse_csr_tensor(torch.zeros(1, dtype=torch.int64), empty, empty, (0, 0), check_invariants=False)

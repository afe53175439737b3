"""The factors of one adapter in all blocks of a stack, laid side by side: the rows of every block in two products.

For inference. In training each block's module (`reparam`) computes its own rows, and is the reference of what stands
here.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from peft_aot.ops import ACTIVATIONS, stacked_fc_rows, stacked_kronecker_rows, unit_rows

from .reparam import Bottleneck, ConstantRows, KroneckerRows, RandomRows, RowsModule, random_embeddings

ALL = slice(None)
_NUMBERS = itertools.count()


class StackedFactors:
    """What is needed to compute an adapter's rows for the blocks of one stack; nothing in it ever changes.

    Args:
        modules: For every block of the stack the module that computes its rows, or None where the adapter adds none.
            Their factors are copied.
        device: Where to keep them; by default where they are.

    Attributes:
        number: Another one for every object that was ever made.
        nbytes: What its tensors take.
        recipe: How `inputs` are made; factors that share one may share inputs.
    """

    def __init__(self, modules: Sequence[RowsModule | None], device: torch.device | None = None) -> None:
        self.number = next(_NUMBERS)
        self._layers = len(modules)
        self._slots = [slot for slot, module in enumerate(modules) if module is not None]
        parts = [module for module in modules if module is not None]
        self._kind: type[nn.Module] | None = type(parts[0]) if parts else None
        first = parts[0] if parts else None
        self._activation = first.activation if isinstance(first, Bottleneck) else ""
        self._normalize = isinstance(first, Bottleneck) and first.normalize
        self._vocab_size = first.vocab_size if isinstance(first, RandomRows) else 0
        with torch.no_grad():
            self._factors = {name: factor.to(device) for name, factor in _stack(parts).items()}
        w1 = self._factors.get("w1")
        self.recipe = None if w1 is None else (self._normalize, w1.dtype, w1.device)

    def __setstate__(self, state: dict[str, Any]) -> None:
        # numbers of another process, or of the original, stand for something else here
        self.__dict__.update(state, number=next(_NUMBERS))

    @property
    def nbytes(self) -> int:
        """Bytes of the factors."""
        return sum(factor.nbytes for factor in self._factors.values())

    @property
    def dtype(self) -> torch.dtype | None:
        """Their number format, or None if there are none."""
        return next((factor.dtype for factor in self._factors.values()), None)

    def inputs(self, embeddings: Tensor) -> Tensor:
        """Turn embeddings (U, E) into what `compute` is fed: x, or themselves where nothing can be done ahead."""
        if self.recipe is None:
            return embeddings
        normalize, dtype, device = self.recipe
        x = embeddings.to(device=device, dtype=dtype)
        return unit_rows(x) if normalize else x

    def compute(self, rows: Tensor, tokens: Tensor, inputs: Tensor, blocks: slice = ALL) -> None:
        """Write rows.

        Args:
            rows: (L, U, D) for the L blocks that are asked for, written to; zero for those without.
            tokens: (U,) int64.
            inputs: (U, E), made of theirs by `inputs`.
            blocks: Which blocks of the stack.
        """
        asked = range(self._layers)[blocks]
        if len(asked) < len(rows):  # blocks that were wrapped since
            rows[len(asked) :] = 0
            rows = rows[: len(asked)]
        own = [slot for slot in self._slots if slot in asked]
        if not own:
            rows.zero_()
            return
        first = self._slots.index(own[0])
        found = self._compute(tokens, inputs, slice(first, first + len(own)))
        if len(own) == len(asked):
            rows.copy_(found)
        else:
            rows.zero_()
            rows[[slot - asked.start for slot in own]] = found.to(rows)

    def _compute(self, tokens: Tensor, inputs: Tensor, part: slice) -> Tensor:
        """Return the rows (L, U, D) of the L blocks `part` of those that have any."""
        factors = {name: factor[part] for name, factor in self._factors.items() if name != "w1"}
        if self._kind is ConstantRows:
            return factors["b2"].unsqueeze(1).expand(-1, len(tokens), -1)
        if self._kind is KroneckerRows:
            return stacked_kronecker_rows(tokens.to(factors["w_l"].device), **factors)
        w1, rank = self._factors["w1"], factors["b1"].shape[1]
        if self._kind is RandomRows:
            table = random_embeddings(self._vocab_size, w1.shape[1], w1.device)
            x = table[tokens.to(table.device)].to(w1.dtype)
            inputs = unit_rows(x) if self._normalize else x
        return stacked_fc_rows(
            inputs,
            w1=w1[part.start * rank : part.stop * rank],
            activation=ACTIVATIONS[self._activation],
            **factors,
        )


class OffloadedFactors(StackedFactors):
    """Factors that are on the "meta" device until accelerate brings them for the module they belong to, as it runs."""

    def __init__(self, modules: Sequence[RowsModule | None]) -> None:
        super().__init__([None] * len(modules))
        self._modules = modules

    @property
    def dtype(self) -> torch.dtype | None:
        """Their number format, or None if there are none."""
        parameters = (p for module in self._modules if module is not None for p in module.parameters())
        return next((parameter.dtype for parameter in parameters), None)

    def compute(self, rows: Tensor, tokens: Tensor, inputs: Tensor, blocks: slice = ALL) -> None:
        """Write rows, block by block; see `StackedFactors`."""
        for row, module in zip(rows, self._modules[blocks], strict=True):
            row.copy_(module(tokens, inputs)) if module is not None else row.zero_()


def _stack(parts: Sequence[RowsModule]) -> Mapping[str, Tensor]:
    """Return the factors of all blocks, those that are scaled already multiplied by their scale."""
    names = [name for name, _ in parts[0].named_parameters()] if parts else []
    stacked = {}
    scale = float(getattr(parts[0], "scale", 1.0)) if parts else 1.0
    for name in names:
        device = next(parts[0].parameters()).device  # blocks may be on several
        factors = [module.get_parameter(name).detach().to(device) for module in parts]
        stacked[name] = torch.cat([w1.t() for w1 in factors]) if name == "w1" else torch.stack(factors)
        if name in ("w2", "w_r"):
            stacked[name] *= scale
    return stacked

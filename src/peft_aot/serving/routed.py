"""A module of a head of which every task has its own: each example of a batch meets its own task's.

Linear layers of all tasks of a batch are one matrix product; the loop over tasks beside it is the reference.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


class Routed(nn.Module):
    """Runs on each example the module of its own task.

    Args:
        like: A module of the same class, without values.

    Attributes:
        modules_of: (B), the module of each example of the batch that runs.
    """

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self._like = (like,)  # no submodule: it has no values
        self.modules_of: Sequence[nn.Module] = []

    @property
    def like(self) -> nn.Module:
        """The module that has no values."""
        return self._like[0]

    def forward(self, features: Tensor, *args: object, **kwargs: object) -> Tensor:
        """Return outputs, padded with -inf to the widest."""
        distinct = list(dict.fromkeys(self.modules_of))
        if len(distinct) == 1:
            only: Tensor = distinct[0](features, *args, **kwargs)
            return only
        linears = [module for module in distinct if type(module) is nn.Linear]
        if len(linears) == len(distinct):
            return linear_rows(features, linears, self.modules_of)
        return looped_rows(features, distinct, self.modules_of, *args, **kwargs)


def looped_rows(
    features: Tensor, distinct: Sequence[nn.Module], modules_of: Sequence[nn.Module], *args: object, **kwargs: object
) -> Tensor:
    """Run one module after another on its examples.

    Args:
        features: (B, ...).
        distinct: Every module once.
        modules_of: (B), the module of each example.
        args: Passed on to all.
        kwargs: Passed on to all.

    Returns:
        (B, ..., C), padded with -inf, which takes no probability.
    """
    found: list[tuple[Tensor, Tensor]] = []
    for module in distinct:
        rows = torch.tensor([i for i, m in enumerate(modules_of) if m is module], device=features.device)
        found.append((rows, module(features[rows], *args, **kwargs)))
    width = max(outputs.shape[-1] for _, outputs in found)
    result = found[0][1].new_full((len(modules_of), *found[0][1].shape[1:-1], width), float("-inf"))
    for rows, outputs in found:
        result[rows, ..., : outputs.shape[-1]] = outputs
    return result


def linear_rows(features: Tensor, distinct: Sequence[nn.Linear], modules_of: Sequence[nn.Module]) -> Tensor:
    """Compute what `looped_rows` does for linear layers, as one product of all examples with all layers.

    Each example's own outputs are picked from it: a few thousand columns cost less than as many calls.
    """
    width = max(module.out_features for module in distinct)
    weights: list[Tensor] = [module.weight for module in distinct]
    biases: list[Tensor] = [m.weight.new_zeros(m.out_features) if m.bias is None else m.bias for m in distinct]
    every = nn.functional.linear(features, torch.cat(weights), torch.cat(biases))
    order = {id(module): number for number, module in enumerate(distinct)}
    layer_of = torch.tensor([order[id(module)] for module in modules_of], device=features.device)
    sizes = torch.tensor([module.out_features for module in distinct], device=features.device)
    starts = (sizes.cumsum(0) - sizes)[layer_of]
    columns = torch.arange(width, device=features.device)
    absent = columns >= sizes[layer_of].unsqueeze(1)  # (B, C)
    index = (starts.unsqueeze(1) + columns).masked_fill(absent, 0)
    shape = (len(modules_of), *[1] * (every.dim() - 2), width)
    picked = every.gather(-1, index.view(shape).expand(*every.shape[:-1], width))
    return picked.masked_fill(absent.view(shape), float("-inf"))

"""The control that is no lookup: FC's bottleneck, fed by the hidden state itself instead of by an embedding.

`H'_l = H_l + f(norm(H_l) W1 + b1) W2 + b2`. The layer adds it, since no table could hold it. This file knows which
examples of a batch are whose, but neither token ids nor tables.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from peft_aot.routing import Tasks

from .reparam import HiddenBottleneck


def add_bottlenecks(
    total: Tensor,
    hidden: Tensor,
    bottlenecks: Mapping[str, HiddenBottleneck],
    active: Sequence[str],
    tasks: Tasks | None,
) -> Tensor:
    """Add to (B, T, D) what bottlenecks make of the hidden states.

    Args:
        total: (B, T, D), what to add to: the hidden states, perhaps with rows of other adapters.
        hidden: (B, T, D), the hidden states themselves.
        bottlenecks: By adapter name.
        active: The adapters to add, each to all examples, unless the call is a mixed batch.
        tasks: The adapters of the examples of a mixed batch, or None.

    Raises:
        ValueError: The rows of a mixed batch are not its examples.
    """
    if tasks is None:
        for name in active:
            if name in bottlenecks:
                total = total + bottlenecks[name](hidden).to(total)
        return total
    if hidden.shape[0] != tasks.rows:
        raise ValueError(
            f"expected hidden states of {tasks.rows} examples, got shape {tuple(hidden.shape)} from a backbone that "
            f"reorders or unpads its batch; run its adapters one at a time with set_adapter"
        )
    names = tasks.expand(hidden.shape[0])
    for name in dict.fromkeys(names):
        if name in bottlenecks:
            examples = torch.tensor([i for i, n in enumerate(names) if n == name], device=hidden.device)
            added = bottlenecks[name](hidden.index_select(0, examples))
            total = total.index_add(0, examples, added.to(total))
    return total

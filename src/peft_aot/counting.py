"""Seeing that an optimizer has changed a parameter.

Tables and written values are made from parameters, and are as good as these are unchanged, which torch counts
(`Tensor._version`). Its fused optimizers, `Trainer`'s default among them, change parameters without counting.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.autograd.graph import increment_version
from torch.optim.optimizer import register_optimizer_step_post_hook

_REGISTERED: list[object] = []


def count_optimizer_steps() -> None:
    """Count every step of every optimizer as a change of its parameters; asking twice changes nothing."""
    if not _REGISTERED:
        _REGISTERED.append(register_optimizer_step_post_hook(_count))


def _count(optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.grad is not None and not parameter.is_inference():
                increment_version(parameter)

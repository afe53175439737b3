"""A few entries of a linear layer, trained in place: `theta'_i = theta_i + delta_i` where the mask has i.

The module computes with the entries written into its weight and bias, in training too; the gradient of these entries
alone is computed (`gradient`). Memory and time beyond the backbone's own are in proportion to their number: there is no
gradient, no optimizer state and no copy of a whole weight. This file does not know how the mask was chosen (`mask`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peft_aot.attached.config import AttachedConfig
from peft_aot.attached.layer import AdapterDict
from peft_aot.attached.written import Change, WrittenLayer

from .config import PaFiConfig
from .gradient import SparseEntries, carry_gradient


@dataclass(frozen=True, eq=False)
class ModuleMask:
    """Which entries of one module are trained.

    Attributes:
        weight: (k_w,) int64, ascending flat indices into the weight.
        bias: (k_b,) int64, ascending indices into the bias.
        entries: Those of the weight as the gradient needs them; None if there are none.
    """

    weight: Tensor
    bias: Tensor
    entries: SparseEntries | None

    @classmethod
    def of(cls, module: nn.Module, weight: Tensor | None, bias: Tensor | None) -> ModuleMask:
        """Make the mask of a module from its indices, either of which may be missing."""
        matrix = module.get_parameter("weight")
        none = torch.empty(0, dtype=torch.int64, device=matrix.device)
        entries = None if weight is None else SparseEntries.of(weight, matrix.shape, isinstance(module, Conv1D))
        return cls(none if weight is None else weight, none if bias is None else bias, entries)

    def to(self, device: torch.device) -> ModuleMask:
        """Return the same mask on a device."""
        if self.weight.device == device:
            return self
        entries = None if self.entries is None else self.entries.to(device)
        return ModuleMask(self.weight.to(device), self.bias.to(device), entries)


class PaFiLayer(WrittenLayer):
    """Beside one linear layer; holds per adapter its deltas (k_w + k_b,), those of the weight first."""

    child_name = "pafi_layer"
    adapter_layer_names: tuple[str, ...] = ("pafi_delta",)
    other_param_names: tuple[str, ...] = ("pafi_masks",)

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.pafi_delta = AdapterDict({})
        self.pafi_masks: dict[str, ModuleMask] = {}

    def update_layer(self, adapter_name: str, config: AttachedConfig) -> None:
        """Add an adapter, whose mask is in `pafi_masks` already, with deltas of zero."""
        mask = self.pafi_masks[adapter_name]
        size = len(mask.weight) + len(mask.bias)
        random = isinstance(config, PaFiConfig) and not config.init_weights
        self.pafi_delta[adapter_name] = nn.Parameter(torch.randn(size) * 0.1 if random else torch.zeros(size))
        self.added(adapter_name, config)

    def has(self, adapter_name: str) -> bool:
        """Whether an adapter changes entries here."""
        return adapter_name in self.pafi_delta

    def factors(self, adapter_name: str) -> list[Tensor]:
        """Return the deltas, which are all there is."""
        return [self.pafi_delta[adapter_name]]

    def changes(self, adapter_name: str) -> list[Change]:
        """Return the entries of weight and bias, where there are any."""
        mask, (weight, bias) = self.pafi_masks[adapter_name], self._parts(adapter_name)
        found = [Change("weight", mask.weight, weight), Change("bias", mask.bias, bias)]
        return [change for change in found if len(change.delta)]

    def after(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Carry the gradient to the adapters that are trained."""
        for name in self.carrying():
            mask, (weight, bias) = self.pafi_masks[name], self._parts(name)
            output = carry_gradient(
                output,
                inputs,
                weight=None if mask.entries is None else (weight, mask.entries),
                bias=(bias, mask.bias) if len(bias) else None,
            )
        return output

    def _parts(self, adapter_name: str) -> tuple[Tensor, Tensor]:
        delta: Tensor = self.pafi_delta[adapter_name]
        border = len(self.pafi_masks[adapter_name].weight)
        return delta[:border], delta[border:]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> PaFiLayer:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name, delta in self.pafi_delta.items():  # indices go where the deltas went
            self.pafi_masks[name] = self.pafi_masks[name].to(delta.device)
        return self

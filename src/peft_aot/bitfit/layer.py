"""A trained bias: `b' = b + delta`, one delta per adapter (Ben Zaken et al. 2022, section 3)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peft_aot.attached.bias import BiasLayer
from peft_aot.attached.config import AttachedConfig
from peft_aot.attached.layer import AdapterDict

from .config import BitFitConfig


class BitFitLayer(BiasLayer):
    """Beside one module with a bias (n,); holds a delta (n,) per adapter."""

    child_name = "bitfit_layer"
    adapter_layer_names: tuple[str, ...] = ("bitfit_delta",)

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.bitfit_delta = AdapterDict({})

    def update_layer(self, adapter_name: str, config: AttachedConfig) -> None:
        """Add an adapter whose delta is zero."""
        random = isinstance(config, BitFitConfig) and not config.init_weights
        size = self.parameter("bias").shape
        self.bitfit_delta[adapter_name] = nn.Parameter(torch.randn(size) if random else torch.zeros(size))
        self.added(adapter_name, config)

    def has(self, adapter_name: str) -> bool:
        """Whether an adapter has a delta here."""
        return adapter_name in self.bitfit_delta

    def factors(self, adapter_name: str) -> list[Tensor]:
        """Return the delta, which is all there is."""
        return [self.bitfit_delta[adapter_name]]

    def delta(self, adapter_name: str) -> Tensor:
        """Return the delta (n,)."""
        delta: Tensor = self.bitfit_delta[adapter_name]
        return delta

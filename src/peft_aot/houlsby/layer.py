"""A bottleneck after a projection: `y' = y + f(y W_down + b_down) W_up + b_up` (Houlsby et al. 2019, section 2.1).

It is applied to the output of a sub-layer's last projection, before the residual connection adds the sub-layer's input.
It depends on the hidden state and not linearly, so that it stays in the forward path; it cannot be merged.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from peft_aot.attached.config import AttachedConfig
from peft_aot.attached.layer import AttachedLayer
from peft_aot.ops import ACTIVATIONS
from peft_aot.routing import BASE
from peft_aot.sublayers import linear_features

from .config import as_houlsby


class HoulsbyLayer(AttachedLayer):
    """Beside one projection (nn.Linear or Conv1D) to D; holds W_down, b_down, W_up and b_up per adapter.

    W_up and b_up are zero at the start; W_down is normal with variance 1/D (our choice, docs/houlsby.md).
    """

    child_name = "houlsby_layer"
    adapter_layer_names: tuple[str, ...] = ("houlsby_down", "houlsby_up")
    other_param_names: tuple[str, ...] = ("houlsby_dropout", "houlsby_activation")

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        # not one module per adapter, since PEFT finds an adapter's name only right before a parameter's
        self.houlsby_down = nn.ModuleDict({})
        self.houlsby_up = nn.ModuleDict({})
        self.houlsby_dropout = nn.ModuleDict({})
        self.houlsby_activation: dict[str, str] = {}

    def update_layer(self, adapter_name: str, config: AttachedConfig) -> None:
        """Add an adapter, the identity at the start."""
        houlsby, width = as_houlsby(config), linear_features(self.module)[1]
        down, up = nn.Linear(width, houlsby.r), nn.Linear(houlsby.r, width)
        nn.init.normal_(down.weight, std=width**-0.5)
        nn.init.zeros_(down.bias)
        if houlsby.init_weights:
            nn.init.zeros_(up.weight)
            nn.init.zeros_(up.bias)
        self.houlsby_down[adapter_name], self.houlsby_up[adapter_name] = down, up
        self.houlsby_dropout[adapter_name] = nn.Dropout(houlsby.dropout).train(self.training)
        self.houlsby_activation[adapter_name] = houlsby.activation
        self.added(adapter_name, config)

    def needs_hook(self) -> bool:
        """Whether an active adapter has a bottleneck here."""
        return any(name in self.houlsby_down for name in self.active_adapters)

    def after(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Add what the active adapters make of the output; several are independent of each other."""
        result = output
        for name in self.active_adapters:
            if name in self.houlsby_down:
                result = result + self.bottleneck(name, output)
        return result

    def after_mixed(self, output: Tensor, names: tuple[str, ...]) -> Tensor:
        """Add to each example what its own adapter makes of it; each runs on its examples only."""
        result = output.clone()
        for name in dict.fromkeys(names):
            if name != BASE and name in self.houlsby_down:
                rows = torch.tensor([i for i, n in enumerate(names) if n == name], device=output.device)
                result.index_add_(0, rows, self.bottleneck(name, output.index_select(0, rows)))
        return result

    def bottleneck(self, adapter_name: str, output: Tensor) -> Tensor:
        """Compute `f(y W_down + b_down) W_up + b_up` of outputs (..., D), in the adapter's number format."""
        down, up = self.houlsby_down[adapter_name], self.houlsby_up[adapter_name]
        hidden = ACTIVATIONS[self.houlsby_activation[adapter_name]](down(output.to(down.get_parameter("weight").dtype)))
        added: Tensor = up(self.houlsby_dropout[adapter_name](hidden))
        return added.to(output.dtype)

    def _get_base_layer_device_and_dtype(self, base_layer: nn.Module) -> tuple[torch.device | None, torch.dtype | None]:
        # PEFT would put an adapter on the "meta" device, where an offloaded weight is
        device, dtype = super()._get_base_layer_device_and_dtype(base_layer)  # type: ignore[no-untyped-call]
        return (None if device is not None and device.type == "meta" else device), dtype

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse: no weight holds what is not linear in the hidden state."""
        raise ValueError(
            "expected an adapter that can be folded into weights, got Houlsby adapters, which are not linear in the "
            "hidden state: no weight can hold them. Call unload() for the backbone without them, or train LoRA, HiWi "
            "or PaFi, which can be merged"
        )

    def unmerge(self) -> None:
        """Do nothing, since nothing is ever merged."""

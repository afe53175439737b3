"""A bias or a weight that a network changed: `b' = b + f(b W_down) W_up`, or so row by row (arXiv 2305.16742).

The network is fed with the backbone's parameter, never with hidden states, so that only its result is needed once it is
trained: that is what is saved, and an adapter loaded for inference has no network. One that is trained on from such a
result gets a new network around it. Knows nothing of files.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peft_aot.attached.bias import BiasLayer
from peft_aot.attached.config import AttachedConfig
from peft_aot.attached.written import Change
from peft_aot.sublayers import linear_features

from .config import HiWiConfig
from .gradient import carry_gradient
from .network import Network


class FrozenDict(nn.ParameterDict):
    """Parameters that are never trained and keep the precision they came in, however PEFT casts them.

    PEFT moves and casts by assigning, which would make them trainable again, and round what was loaded to the
    backbone's precision.
    """

    def __setitem__(self, key: str, value: Tensor) -> None:
        """Keep the values of a tensor; of a cast of what is there, only the device."""
        if key in self and value.dtype != self[key].dtype:
            value = self[key].to(value.device)
        super().__setitem__(key, nn.Parameter(value.detach(), requires_grad=False))


class HiWiLayer(BiasLayer):
    """Beside one module; per adapter a network in training, or else what came out of one.

    Attributes:
        hiwi_network: The networks of adapters that can be trained.
        hiwi_delta: What adapters without a network add, in the shape of the parameter that they change.
        hiwi_start: What had been added already to the values that a network is fed with, if its adapter was loaded.
        targets: What each adapter changes, "bias" or "weight".
    """

    child_name = "hiwi_layer"
    adapter_layer_names: tuple[str, ...] = ("hiwi_network", "hiwi_delta")
    other_param_names: tuple[str, ...] = ("hiwi_start",)

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)
        self.hiwi_network = nn.ModuleDict({})
        self.hiwi_delta = FrozenDict()
        self.hiwi_start = FrozenDict()
        self.targets: dict[str, str] = {}

    def update_layer(self, adapter_name: str, config: AttachedConfig) -> None:
        """Add an adapter: with a network, unless it is for inference only."""
        hiwi = as_hiwi(config)
        self.targets[adapter_name] = hiwi.target
        if config.inference_mode:
            values = self.parameter(hiwi.target)
            exact = torch.promote_types(values.dtype, torch.float32)
            self.hiwi_delta[adapter_name] = torch.zeros(values.shape, dtype=exact)
        else:
            self.hiwi_network[adapter_name] = self._new_network(adapter_name, hiwi)
        self.added(adapter_name, config)

    def _new_network(self, adapter_name: str, config: HiWiConfig) -> Network:
        is_bias = config.target == "bias"
        width = self.parameter("bias").shape[0] if is_bias else linear_features(self.module)[0]
        layers = [m for m in self.tuner.modules() if isinstance(m, HiWiLayer)] if config.share else []
        there = [layer.network(adapter_name) for layer in layers if adapter_name in layer.hiwi_network]
        return next((network for network in there if network.width == width), None) or Network(width, config)

    def network(self, adapter_name: str) -> Network:
        """Return the network of an adapter that has one."""
        network = self.hiwi_network[adapter_name]
        if not isinstance(network, Network):
            raise TypeError(f"expected a Network, got {type(network).__name__}; add adapters with add_adapter only")
        return network

    def start_anew(self, adapter_name: str) -> None:
        """Be ready to load what the network of an adapter is to start from."""
        if adapter_name not in self.hiwi_start:
            values, dtype = self.parameter(self.targets[adapter_name]), self.network(adapter_name).down.dtype
            self.hiwi_start[adapter_name] = torch.zeros_like(values, dtype=dtype)

    # what an adapter adds

    def has(self, adapter_name: str) -> bool:
        """Whether an adapter changes this module."""
        return adapter_name in self.hiwi_network or adapter_name in self.hiwi_delta

    def factors(self, adapter_name: str) -> list[Tensor]:
        """Return what has been saved of an adapter and the matrices of its network, as far as there are any."""
        found: list[Tensor] = [d[adapter_name] for d in (self.hiwi_delta, self.hiwi_start) if adapter_name in d]
        if adapter_name in self.hiwi_network:
            found += [self.network(adapter_name).down, self.network(adapter_name).up]
        return found

    def changes(self, adapter_name: str) -> list[Change]:
        """Return the one change: of the whole bias or weight."""
        return [Change(self.targets[adapter_name], None, self.delta(adapter_name))]

    def delta(self, adapter_name: str) -> Tensor:
        """Compute what an adapter adds, in the shape of the parameter that it changes."""
        if adapter_name in self.hiwi_delta:
            saved: Tensor = self.hiwi_delta[adapter_name]
            return saved
        rows = self._rows(adapter_name)
        added = self.network(adapter_name)(rows).to(rows.device)
        delta: Tensor = added.t() if self._turned(adapter_name) else added
        return delta + self.hiwi_start[adapter_name] if adapter_name in self.hiwi_start else delta

    def forward(self, adapter_name: str) -> Tensor:
        """Compute what an adapter adds, for callers that put other tensors in the place of the layer's own."""
        return self.delta(adapter_name)

    def original(self, parameter: str) -> Tensor:
        """Return a parameter as it is without adapters."""
        values = super().original(parameter)
        if torch.compiler.is_compiling():  # cannot ask
            return values
        # autograd takes no tensors that were kept under inference_mode, as in an evaluation between steps of training
        return values.clone() if values.is_inference() and not torch.is_inference_mode_enabled() else values

    def _rows(self, adapter_name: str) -> Tensor:
        """Return the rows that the network of an adapter is fed with."""
        values = self.original(self.targets[adapter_name])
        if adapter_name in self.hiwi_start:
            values = values + self.hiwi_start[adapter_name]
        return values.t() if self._turned(adapter_name) else values

    def _turned(self, adapter_name: str) -> bool:
        """Whether what an adapter changes is stored as (in, out), where rows are columns."""
        return self.targets[adapter_name] == "weight" and isinstance(self.module, Conv1D)

    # in the forward pass

    def carry(self, adapter_name: str, inputs: Tensor, output: Tensor) -> Tensor:
        """Return the output, and let its gradient flow to an adapter."""
        if self.targets[adapter_name] == "bias":
            return super().carry(adapter_name, inputs, output)
        network = self.network(adapter_name)
        return carry_gradient(output, inputs, network.hidden(self._rows(adapter_name)), network.up)

    def after_mixed(self, output: Tensor, names: tuple[str, ...]) -> Tensor:
        """Give each example its own adapter's bias; the tuner lets no adapter of weights come so far."""
        return super().after_mixed(output, names) if "bias" in self.targets.values() else output

    # life

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter out of the module and delete it; see PEFT."""
        super().delete_adapter(adapter_name)
        self.targets.pop(adapter_name, None)

    def _freeze_non_trainable_peft_weights(self, adapter_names: str | Sequence[str] | None = None) -> None:
        # PEFT calls this after it has made an adapter trainable
        super()._freeze_non_trainable_peft_weights(adapter_names)
        for delta in self.hiwi_delta.values():
            delta.requires_grad_(False)


def as_hiwi(config: Any) -> HiWiConfig:
    """Return `config`, of which callers only know that it is a configuration."""
    if not isinstance(config, HiWiConfig):
        raise TypeError(f"expected a HiWiConfig, got {type(config).__name__}; do not mix methods in one model")
    return config

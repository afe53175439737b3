"""HiWi as a PEFT tuner: which parameters are fed to networks, which adapters mix, and what of them is stored."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.config import PeftConfig
from torch import Tensor, nn

from peft_aot.attached.config import AttachedConfig
from peft_aot.attached.model import AttachedTuner

from .config import HiWiConfig
from .layer import HiWiLayer, as_hiwi
from .network import random_down
from .targets import biases, check_biases, check_weights, feed_forward, weights


class HiWiModel(AttachedTuner):
    """HiWi (Liao, Meng and Monz 2023, arXiv 2305.16742) on a backbone.

    Args:
        model: The backbone; its biases or weights change in place, and back.
        config: One `HiWiConfig`, or several by adapter name.
        adapter_name: The first adapter's name.

    Example:
        >>> model = get_peft_model(backbone, HiWiConfig(task_type="SEQ_CLS", r=16))
    """

    method = "HiWi"
    paper = "https://arxiv.org/abs/2305.16742"
    tag = "hiwi"
    what = "it adds to biases or weights of the backbone what a network, thrown away after training, made of them"
    shown = ("target", *AttachedTuner.shown)
    fixed = ("target", *AttachedTuner.fixed)
    config_cls = HiWiConfig
    prefix: str = "hiwi_layer.hiwi_"
    tuner_layer_cls = HiWiLayer

    # choosing

    def candidates(self, config: AttachedConfig) -> Mapping[str, str | None]:
        """Return the modules that a bias could be expected of, or the linear layers."""
        return biases(self.model) if as_hiwi(config).target == "bias" else weights(self.model)

    def defaults(self, config: AttachedConfig, able: list[str]) -> list[str]:
        """Return the projections of the feed-forward network of every block; any that is not able is then refused.

        Raises:
            ValueError: A block has none that can be told.
        """
        found = self.candidates(config)
        return [name for name in feed_forward(self.model) if name in found]

    def prepare(self, config: AttachedConfig, targets: list[str]) -> None:
        """Refuse parameters that a network would make nothing of, or that cannot be changed."""
        if as_hiwi(config).target == "weight":
            check_weights(self.model, targets)
        else:
            check_biases(self.model, targets, trained=not config.inference_mode)

    # mixed batches

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        if kwargs.get("adapter_names") is not None:
            self._check_mix(kwargs["adapter_names"])
        with super()._enable_peft_forward_hooks(*args, **kwargs):
            yield

    def _check_mix(self, adapter_names: Any) -> None:
        written = {name for layer in self._hiwi_layers() for name in layer.written}
        for name in (name for name, config in self.peft_config.items() if as_hiwi(config).target == "weight"):
            named = isinstance(adapter_names, (list, tuple)) and name in adapter_names
            if named or name in written:
                raise ValueError(
                    f"expected adapters with target='bias' in a mixed batch, got '{name}' with target='weight' "
                    f"{'among adapter_names' if named else 'active'}: the examples of a batch share one weight; "
                    f"{'run it alone' if named else 'activate one of biases'} with set_adapter"
                )

    # the life of adapters

    def set_requires_grad(self, adapter_names: str | Sequence[str], requires_grad: bool = True) -> None:
        """Freeze adapters or make them trainable; see PEFT.

        Raises:
            ValueError: One is to be trained that was loaded for inference.
        """
        for name in [adapter_names] if isinstance(adapter_names, str) else adapter_names:
            if requires_grad and any(name in layer.hiwi_delta for layer in self._hiwi_layers()):
                raise ValueError(
                    f"expected an adapter with a network to train, got '{name}', which was loaded for inference; call "
                    f"delete_adapter and load it with is_trainable=True"
                )
        super().set_requires_grad(adapter_names, requires_grad)

    def _hiwi_layers(self) -> list[HiWiLayer]:
        return [layer for layer in self.layers() if isinstance(layer, HiWiLayer)]

    # what is stored

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        """Return what the adapter adds, whether a network computes it or it is all there is."""
        deltas = {}
        for name, layer in _layers_with(model, adapter_name):
            prefix = f"{name}."
            own = {key.removeprefix(prefix): value for key, value in state_dict.items() if key.startswith(prefix)}
            with torch.no_grad():
                deltas[f"{name}.hiwi_delta.{adapter_name}"] = torch.func.functional_call(layer, own, (adapter_name,))
        return deltas

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Load what is saved as it is or, where there is a network, as what a new network starts from."""
        state_dict, anew = dict(state_dict), False
        for name, layer in _layers_with(model, adapter_name):
            if adapter_name not in layer.hiwi_network:
                continue
            for prefix in (f"{name}.", f"base_model.model.{name}."):  # the latter if injected without a PeftModel
                if f"{prefix}hiwi_delta" in state_dict:
                    network = layer.network(adapter_name)
                    layer.start_anew(adapter_name)
                    down, anew = random_down(torch.empty(network.down.shape)), True
                    state_dict[f"{prefix}hiwi_start"] = state_dict.pop(f"{prefix}hiwi_delta")
                    state_dict[f"{prefix}hiwi_network.down"] = down
                    state_dict[f"{prefix}hiwi_network.up"] = torch.zeros(network.up.shape)
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        if anew:
            warnings.warn(
                f"the HiWi adapter '{adapter_name}' goes on from the values that were saved, with new networks: those "
                f"they came from were not saved",
                stacklevel=2,
            )
        return remapped


def _layers_with(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, HiWiLayer]]:
    for name, module in model.named_modules():
        if isinstance(module, HiWiLayer) and module.has(adapter_name):
            yield name, module

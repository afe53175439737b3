"""PaFi as a PEFT tuner: which weights take part, their mask, and sums of adapters that share one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from peft.config import PeftConfig
from torch import Tensor, nn

from peft_aot.attached.config import AttachedConfig
from peft_aot.attached.layer import AttachedLayer
from peft_aot.attached.model import AttachedTuner
from peft_aot.attached.targets import check_untied, own_modules
from peft_aot.backbone import find_blocks
from peft_aot.combination import check_combination
from peft_aot.sublayers import is_linear

from .config import SAVE_DTYPES, PaFiConfig
from .layer import ModuleMask, PaFiLayer
from .mask import DTYPES, fingerprint, smallest_entries


class PaFiModel(AttachedTuner):
    """PaFi (Liao, Meng and Monz 2023, arXiv 2305.16742) on a backbone.

    Args:
        model: The backbone; a few of its weights change in place, and back.
        config: One `PaFiConfig`, or several by adapter name.
        adapter_name: The first adapter's name.

    Example:
        >>> model = get_peft_model(backbone, PaFiConfig(task_type="SEQ_CLS", sparsity=0.005))
    """

    method = "PaFi"
    paper = "https://arxiv.org/abs/2305.16742"
    tag = "pafi"
    what = (
        "it changes the smallest weights of the backbone's linear layers, and stores what it adds to each in the "
        "backbone's order; which they are follows from the backbone (Liao, Meng and Monz 2023)"
    )
    shown = ("sparsity", "scope", "num_values", "mask_fingerprint", *AttachedTuner.shown)
    fixed = ("sparsity", "scope", "mask_fingerprint", *AttachedTuner.fixed)
    config_cls = PaFiConfig
    cannot_mix = "PaFi changes entries of weights, and a weight is the same for all examples of a batch"
    prefix: str = "pafi_layer.pafi_"
    tuner_layer_cls = PaFiLayer

    # the mask

    def candidates(self, config: AttachedConfig) -> Mapping[str, str | None]:
        """Return every linear layer."""
        found: dict[str, str | None] = {}
        for name, module in own_modules(self.model):
            if is_linear(module):
                weight = module._parameters.get("weight")
                if weight is None:
                    found[name] = "whose weight is computed or packed, not a parameter"
                elif weight.dtype not in DTYPES:
                    kind = str(weight.dtype).removeprefix("torch.")
                    found[name] = f"whose weight is {kind}: quantized weights have no magnitudes to choose by"
                else:
                    found[name] = None if weight.is_contiguous() else "whose weight is not contiguous in memory"
        return found

    def defaults(self, config: AttachedConfig, able: list[str]) -> list[str]:
        """Return the linear layers of the transformer blocks, quantized ones too, which are then refused."""
        blocks = [f"{block.name}." for block in find_blocks(self.model)]
        return [name for name in self.candidates(config) if name.startswith(tuple(blocks))]

    def prepare(self, config: AttachedConfig, targets: list[str]) -> None:
        """Choose the mask, and compare it with the one that the adapter was trained with.

        Raises:
            ValueError: Nothing to choose, tied or quantized weights, or the mask of another backbone.
        """
        pafi = as_pafi(config)
        for kind in ("weight", "bias"):
            check_untied(self.model, targets, kind)
        key = (pafi.sparsity, pafi.scope, tuple(targets))
        if key not in self._masks:
            self._masks[key] = self._choose_mask(pafi, targets)
        self._mask, digest, dtype = self._masks[key]
        if pafi.mask_fingerprint is not None and pafi.mask_fingerprint != digest:
            raise ValueError(
                f"expected mask fingerprint {pafi.mask_fingerprint} of {pafi.base_model_name_or_path}, got {digest}: "
                f"these are other weights, or the same in {dtype} where the mask was chosen in {pafi.mask_dtype}; load "
                f"the backbone the adapter was trained on in {pafi.mask_dtype}, and convert it afterwards, or pass a "
                f"fresh PaFiConfig for a new adapter"
            )
        pafi.mask_fingerprint, pafi.mask_dtype = digest, dtype
        pafi.num_values = sum(len(mask.weight) + len(mask.bias) for mask in self._mask.values())

    def _choose_mask(self, config: PaFiConfig, targets: Sequence[str]) -> tuple[dict[str, ModuleMask], str, str]:
        with self._without_adapters():
            weights = {
                f"{name}.{kind}": parameter
                for name in targets
                for kind, parameter in self.model.get_submodule(name).named_parameters(recurse=False)
                if kind in ("weight", "bias")
            }
            chosen = smallest_entries(weights, config.sparsity, config.scope)
        digest = fingerprint(list(chosen), [weights[name].shape for name in chosen], list(chosen.values()))
        masks = {
            name: ModuleMask.of(
                self.model.get_submodule(name), chosen.get(f"{name}.weight"), chosen.get(f"{name}.bias")
            )
            for name in targets
            if f"{name}.weight" in chosen or f"{name}.bias" in chosen
        }
        dtypes = {str(weight.dtype).removeprefix("torch.") for weight in weights.values()}
        return masks, digest, " and ".join(sorted(dtypes))

    @contextmanager
    def _without_adapters(self) -> Iterator[None]:
        # a mask is chosen among the backbone's own weights, whatever stands there now
        layers = [layer for layer in self.layers() if isinstance(layer, PaFiLayer)]
        for layer in layers:
            layer.lift()
        try:
            yield
        finally:
            for layer in layers:
                layer.refresh()

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        super()._pre_injection_hook(model, config, adapter_name)
        self._masks: dict[tuple[Any, ...], tuple[dict[str, ModuleMask], str, str]] = {}

    def _check_target_module_exists(self, peft_config: PeftConfig, key: str) -> Any:  # type: ignore[override]
        return super()._check_target_module_exists(peft_config, key) if key not in self._targets else key in self._mask

    def add(self, layer: AttachedLayer, adapter_name: str, config: AttachedConfig, name: str) -> None:
        """Give the layer beside module `name` one more adapter, with its part of the mask."""
        if isinstance(layer, PaFiLayer):
            layer.pafi_masks[adapter_name] = self._mask[name].to(layer.parameter("weight").device)
        super().add(layer, adapter_name, config, name)

    # sums

    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "linear"
    ) -> None:
        """Add an adapter whose deltas are the weighted sum, entry by entry, of other adapters' with the same mask.

        Weights of 1/n average n adapters, as in federated training; a weight of -1 takes one away. Heads
        (`modules_to_save`) are not combined: the new adapter gets a copy of the first adapter's.

        Args:
            adapters: Names of adapters with one mask.
            weights: One factor per adapter.
            adapter_name: The new adapter's name.
            combination_type: Only `"linear"`.

        Raises:
            ValueError: Unknown names, differing lengths or masks, or another combination type.
        """
        check_combination(list(self.peft_config), adapters, weights, adapter_name, combination_type)
        configs = [as_pafi(self.peft_config[name]) for name in adapters]
        masks = {config.mask_fingerprint for config in configs}
        if len(masks) > 1:
            raise ValueError(
                f"expected adapters with one mask, got the fingerprints {sorted(map(str, masks))}; combine adapters "
                f"that were trained with the same sparsity, scope and target_modules"
            )
        self._add_beside(copy.deepcopy(configs[0]), adapter_name, adapters[0])
        with torch.no_grad():
            for layer in self.layers():
                if isinstance(layer, PaFiLayer) and layer.has(adapter_name):
                    deltas = [weight * layer.pafi_delta[name] for name, weight in zip(adapters, weights, strict=True)]
                    layer.pafi_delta[adapter_name].copy_(torch.stack(deltas).sum(0))
                    layer.refresh()

    # files

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        found: dict[str, Tensor] = super()._get_adapter_state_dict(
            model, config, adapter_name, state_dict, unwanted_adapter_names
        )
        dtype = SAVE_DTYPES[as_pafi(config).save_dtype]
        return {key: value.to(dtype) if cls.prefix in key else value for key, value in found.items()}


def as_pafi(config: PeftConfig) -> PaFiConfig:
    """Return `config`, of which PEFT only knows that it is a `PeftConfig`."""
    if not isinstance(config, PaFiConfig):
        raise TypeError(f"expected a PaFiConfig, got {type(config).__name__}; do not mix methods in one model")
    return config

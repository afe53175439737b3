"""What HiWi can be fed with: which modules by default, and why some biases and weights are refused."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from peft_aot.attached.targets import additive_biases, check_in_memory, check_untied, listed, own_modules
from peft_aot.attached.written import WrittenLayer
from peft_aot.sublayers import is_linear, sublayers

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def biases(model: nn.Module) -> dict[str, str | None]:
    """Return the modules with a bias, or with none where one could be, by name: None, or why they cannot be adapted."""
    without = {name for name, module in own_modules(model) if module._parameters.get("bias", 0) is None}
    return {**dict.fromkeys(without), **additive_biases(model)}


def weights(model: nn.Module) -> dict[str, str | None]:
    """Return the linear layers by name: None, or why they cannot be adapted."""
    found: dict[str, str | None] = {}
    for name, module in own_modules(model):
        if is_linear(module):
            weight = module._parameters.get("weight")
            if weight is None:
                found[name] = "whose weight is computed or packed, not a parameter"
            else:
                found[name] = None if weight.is_contiguous() else "whose weight is not contiguous in memory"
    return found


def feed_forward(model: nn.Module) -> list[str]:
    """Return the projections of the feed-forward network of every block.

    Raises:
        ValueError: No blocks, or one without a feed-forward network that can be told.
    """
    found = sublayers(model)
    unknown = [i for i, block in enumerate(found) if block.ffn_out is None]
    if unknown:
        raise ValueError(
            f"expected a feed-forward network in every block, got none that can be told in {len(unknown)} of "
            f"{len(found)} blocks of {type(model).__name__}, as with experts; name the modules to adapt in "
            f"target_modules"
        )
    return [name for block in found for name in (*block.ffn_in, block.ffn_out) if name is not None]


def check_biases(model: nn.Module, names: Sequence[str], trained: bool) -> None:
    """Refuse biases that are not there or, if they are to be fed to a network, of which it makes nothing.

    Raises:
        ValueError: Some are absent, all zero, or offloaded.
    """
    empty = [f"{name} (no bias)" for name in names if model.get_submodule(name)._parameters.get("bias") is None]
    if not empty:
        check_in_memory(model, names, "bias")
        check_untied(model, names, "bias")
        values = {name: _original(model.get_submodule(name), "bias") for name in names}
        empty = [f"{name} (all zero)" for name, bias in values.items() if trained and not bias.any()]
    if empty:
        raise ValueError(
            f"expected biases that are not zero, got {listed(empty)}: fed with zeros, the network and its gradient "
            f"are exactly zero; use HiWiConfig(target='weight'), or name other target_modules"
        )


def check_weights(model: nn.Module, names: Sequence[str]) -> None:
    """Refuse weights that cannot be changed, or whose change would show in another module.

    Raises:
        ValueError: Some are quantized, tied, or offloaded.
    """
    check_in_memory(model, names, "weight")
    quantized = [f"{name} ({w.dtype})" for name in names if (w := _weight(model, name)).dtype not in DTYPES]
    if quantized:
        raise ValueError(
            f"expected floating-point weights, got {listed(quantized)}: quantized weights cannot be changed, their "
            f"modules' biases can; use HiWiConfig(target='bias'), or load the backbone without quantization"
        )
    check_untied(model, names, "weight")


def _weight(model: nn.Module, name: str) -> Tensor:
    return model.get_submodule(name).get_parameter("weight")


def _original(module: nn.Module, parameter: str) -> Tensor:
    """Return a parameter as it is without the adapters that may be there already."""
    layer = next((child for child in module.children() if isinstance(child, WrittenLayer)), None)
    return module.get_parameter(parameter) if layer is None else layer.original(parameter)

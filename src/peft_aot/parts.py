"""What of a model belongs to one adapter: its tensors in every layer, its heads, and the modules that hold them."""

from __future__ import annotations

from collections.abc import Iterator

from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn

Holder = nn.ModuleDict | nn.ParameterDict


def parts(model: nn.Module, adapter_name: str) -> Iterator[tuple[str, Holder, nn.Module | nn.Parameter]]:
    """Yield the parts of an adapter, each as its name in the model, what holds it by the adapter's name, and itself."""
    for name, module in model.named_modules():
        if not isinstance(module, (BaseTunerLayer, AuxiliaryTrainingWrapper)):
            continue
        for attribute in (*module.adapter_layer_names, *module.other_param_names):
            holder = getattr(module, attribute)
            if isinstance(holder, (nn.ModuleDict, nn.ParameterDict)) and adapter_name in holder:
                yield f"{name}.{attribute}.{adapter_name}", holder, holder[adapter_name]


def versions(model: nn.Module, adapter_name: str) -> tuple[int, ...]:
    """Return a fingerprint of an adapter that changes with every change of its values but those through `.data`."""
    found = [part for _, _, part in parts(model, adapter_name)]
    tensors = [p for part in found for p in (part.parameters() if isinstance(part, nn.Module) else [part])]
    # tensors made under inference_mode count no versions
    return tuple(n for p in tensors for n in (id(p), -1 if p.is_inference() else p._version))

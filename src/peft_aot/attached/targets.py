"""Which modules of a model can carry an adapter, and which of them are the backbone's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from peft.utils.other import AuxiliaryTrainingWrapper
from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from peft_aot.tuner import TaskLayer, matches


def own_modules(model: nn.Module, name: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Yield every module of a model by name, but neither adapters nor trained copies of heads.

    Nor what is inside PyTorch's own attention, which reads the weights of its layers without calling them: no hook of
    theirs would run.
    """
    if isinstance(model, (TaskLayer, AuxiliaryTrainingWrapper)):
        return
    yield name, model
    if isinstance(model, nn.MultiheadAttention):
        return
    for child_name, child in model.named_children():
        yield from own_modules(child, f"{name}.{child_name}" if name else child_name)


def additive_biases(model: nn.Module) -> dict[str, str | None]:
    """Return the modules that own a bias, by name: None, or why an adapter cannot add to it."""
    found: dict[str, str | None] = {}
    for name, module in own_modules(model):
        if isinstance(module._parameters.get("bias"), nn.Parameter):
            adds = isinstance(module, (nn.Linear, nn.LayerNorm, Conv1D))
            found[name] = None if adds else f"{type(module).__name__}, whose bias is not known to be a last summand"
    return found


def in_backbone(model: nn.Module, names: Sequence[str]) -> list[str]:
    """Return those of some names of modules that lie below the model's backbone; what lies beside it are heads."""
    inner = model.base_model if isinstance(model, PreTrainedModel) else model
    prefix = next(name for name, module in model.named_modules() if module is inner)
    return [name for name in names if not prefix or name.startswith(f"{prefix}.")]


def inside_any(name: str, patterns: Sequence[str] | None) -> bool:
    """Whether a module is, or is inside, one that some pattern means."""
    parts = name.split(".")
    return any(matches(patterns, ".".join(parts[:length])) for length in range(1, len(parts) + 1))

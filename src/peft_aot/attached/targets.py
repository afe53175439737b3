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


def check_in_memory(model: nn.Module, names: Sequence[str], parameter: str) -> None:
    """Refuse parameters that are offloaded, and so cannot be written.

    Raises:
        ValueError: Some are.
    """
    away = [name for name in names if model.get_submodule(name).get_parameter(parameter).is_meta]
    if away:
        raise ValueError(
            f"expected parameters in memory, got an offloaded {parameter} in {listed(away)}, which cannot be changed; "
            f"load the backbone on devices that hold all of it"
        )


def check_untied(model: nn.Module, names: Sequence[str], kind: str) -> None:
    """Refuse parameters that another module has too, where a change would show.

    Args:
        model: The model.
        names: Of the modules whose parameter would change.
        kind: Its name in these modules, "weight" or "bias".

    Raises:
        ValueError: One is shared, whether or not the other module is to be adapted.
    """
    owners: dict[int, dict[int, str]] = {}
    for name, module in own_modules(model):
        for parameter in module._parameters.values():
            if parameter is not None and parameter.numel():
                owners.setdefault(id(parameter), {}).setdefault(id(module), name)
    for name in names:
        parameter = model.get_submodule(name)._parameters.get(kind)
        sharing = [] if parameter is None else list(owners.get(id(parameter), {}).values())
        if len(sharing) > 1:
            raise ValueError(
                f"expected a {kind} that no other module has, got one of {' and '.join(sharing)} (tied weights): to "
                f"change it here would change it there; leave {name} out with exclude_modules"
            )


def listed(names: Sequence[str], shown: int = 3) -> str:
    """Return the first of some names, and how many more there are."""
    more = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {more} more" if more > 0 else "")

"""Loading that fails leaves nothing behind: adapters, the active one and the backbone are as they were.

PEFT injects an adapter before it reads the adapter's values, so that whatever is wrong with them is found too late.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor, nn

from peft_aot.parts import parts
from peft_aot.tuner import TaskLayer, TaskTuner


@contextmanager
def keep_adapters(model: nn.Module, tuner: TaskTuner, adapter_name: str) -> Iterator[None]:
    """Undo what is done to a model inside, if an exception ends it: a new adapter goes, an old one is as before.

    Args:
        model: The model.
        tuner: Its tuner.
        adapter_name: The adapter that is about to be loaded.
    """
    modes, active = _Modes(model), list(tuner.active_adapters)
    values = _Values(tuner, adapter_name) if adapter_name in tuner.peft_config else None
    try:
        yield
    except BaseException:
        if values is not None:
            values.restore()
        elif adapter_name in tuner.peft_config:
            tuner.set_adapter(active[:1])  # while several are active, PEFT deletes none that has a head
            tuner.delete_adapter(adapter_name)
            tuner.set_adapter(active)
        modes.restore()
        raise


@contextmanager
def keep_backbone(backbone: nn.Module) -> Iterator[None]:
    """Take adapters of this package off a backbone again, if an exception ends what has put them on inside."""
    modes, hooks = _Modes(backbone), {module: set(module._forward_hooks) for module in backbone.modules()}
    bare = not any(isinstance(module, TaskLayer) for module in backbone.modules())
    try:
        yield
    except BaseException:
        layer = next((module for module in backbone.modules() if isinstance(module, TaskLayer)), None)
        if bare and layer is not None:
            layer.tuner.unload()
            modes.restore()
            for module, known in hooks.items():  # PEFT's, for gradient checkpointing
                for key in set(module._forward_hooks) - known:
                    del module._forward_hooks[key]
        raise


class _Modes:
    """Which modules of a model are in training mode, and which of its parameters want a gradient."""

    def __init__(self, model: nn.Module) -> None:
        self._training = [(module, module.training) for module in model.modules()]
        self._wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        self._model = model

    def restore(self) -> None:
        for module, training in self._training:
            module.training = training
        for parameter, wanted in self._wanted:
            if parameter.requires_grad != wanted:
                parameter.requires_grad_(wanted)
        for module in self._model.modules():
            if isinstance(module, TaskLayer):
                module.refresh()


class _Values:
    """The tensors of an adapter, the modules they are in, and their values."""

    def __init__(self, tuner: TaskTuner, adapter_name: str) -> None:
        self._tuner, self._adapter_name = tuner, adapter_name
        self._restored = tuner.made_from(adapter_name)
        self._children: list[tuple[nn.Module, str, nn.Module | nn.Parameter]] = []
        self._values: dict[str, Tensor] = {}
        self._names: set[str] = set()
        for name, holder, part in parts(tuner, adapter_name):
            self._names.add(name)
            self._children.append((holder, adapter_name, part))
            inside = part.modules() if isinstance(part, nn.Module) else ()
            for module in inside:
                self._children += [(module, *child) for child in module.named_children()]
                self._children += [(module, *child) for child in module.named_parameters(recurse=False)]
            state = part.state_dict(prefix=f"{name}.") if isinstance(part, nn.Module) else {name: part}
            self._values.update({key: value.detach().clone() for key, value in state.items()})

    def restore(self) -> None:
        for name, holder, _ in list(parts(self._tuner, self._adapter_name)):
            if name not in self._names:
                del holder[self._adapter_name]
        for module, name, child in self._children:  # a head of another size, or tensors, may have taken their places
            setattr(module, name, child)
        self._tuner.load_state_dict(self._values, strict=False)  # the way they came: layers follow what is loaded
        self._restored()

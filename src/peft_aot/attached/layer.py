"""A tuner layer that stands beside a module: its child, seen by PEFT, touching what it computes only through hooks.

The module keeps its class, its name and its own forward; a hook is there only while one is needed. Knows nothing of
what an adapter computes.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from peft_aot.routing import Tasks, tasks_of
from peft_aot.tuner import TaskLayer

from .config import AttachedConfig


class AdapterDict(nn.ParameterDict):
    """Parameters by adapter name that stay frozen, or trainable, when PEFT moves or casts them by assigning anew."""

    def __setitem__(self, key: str, value: Tensor) -> None:
        """Hold a tensor as a parameter."""
        if key in self:
            value = nn.Parameter(value.detach(), requires_grad=self[key].requires_grad)
        super().__setitem__(key, value)


class AttachedLayer(TaskLayer):
    """Child of one module of the backbone.

    Args:
        module: The module to adapt.
        tuner: The tuner that owns this layer.
        adapter_name: The adapter that is active from the start.

    Attributes:
        child_name: Its name below the module; begins with the tuner's prefix.
    """

    child_name: ClassVar[str]

    def __init__(self, module: nn.Module, tuner: BaseTuner, adapter_name: str) -> None:
        super().__init__()
        self.__dict__["tuner"] = tuner  # neither is a submodule: both contain this layer
        self.__dict__["base_layer"] = module
        self.mixes = False
        self.merged_adapters: list[str] = []
        self._active_adapter = adapter_name
        self._disable_adapters = False
        self._hooks: list[RemovableHandle] = []
        self.training = module.training
        self.register_load_state_dict_post_hook(_loaded)  # type: ignore[no-untyped-call]
        module.add_module(self.child_name, self)

    @property
    def module(self) -> nn.Module:
        """The module that is adapted."""
        module: nn.Module = self.__dict__["base_layer"]
        return module

    def parameter(self, name: str) -> Tensor:
        """Return a parameter of the module.

        Raises:
            AttributeError: It has none of that name.
        """
        return self.module.get_parameter(name)

    # what a method must say

    def update_layer(self, adapter_name: str, config: AttachedConfig) -> None:
        """Add one more adapter; call `added` at the end."""
        raise NotImplementedError

    def needs_hook(self) -> bool:
        """Whether the active adapters cannot do without a hook on the module."""
        raise NotImplementedError

    def before(self) -> None:
        """Do what is needed before the module runs, while it has hooks."""

    def after(self, inputs: Tensor, output: Tensor) -> Tensor:
        """Return the module's output as the active adapters have it."""
        raise NotImplementedError

    def after_mixed(self, output: Tensor, names: tuple[str, ...]) -> Tensor:
        """Return the module's output (B, ...) as the adapter `names[i]` of each example has it."""
        raise NotImplementedError

    def refresh(self) -> None:
        """Bring the module in line with the active adapters."""
        wanted = self.mixes or (not self.disable_adapters and not self.merged and self.needs_hook())
        if wanted and not self._hooks:
            self._hooks = [
                self.module.register_forward_pre_hook(self._before),
                self.module.register_forward_hook(self._after, with_kwargs=True),
            ]
        elif not wanted:
            self._remove_hooks()

    # life

    def added(self, adapter_name: str, config: AttachedConfig) -> None:
        """Place the parameters of a new adapter and activate what is active."""
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    def mix(self) -> None:
        """Be ready for batches that mix adapters, from now on."""
        self.mixes = True
        self.refresh()

    def leave(self, merged: bool) -> None:
        """Leave the module for good: as it was, or with what has been merged into it."""
        self._remove_hooks()
        delattr(self.module, self.child_name)

    def set_adapter(self, adapter_names: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters, and freeze them for inference or make them trainable; see PEFT."""
        super().set_adapter(adapter_names, inference_mode)
        self.refresh()

    def enable_adapters(self, enabled: bool) -> None:
        """Switch all adapters on or off; see PEFT."""
        super().enable_adapters(enabled)
        self.refresh()

    def set_requires_grad(self, adapter_names: Any, requires_grad: bool = True) -> None:
        """Freeze adapters or make them trainable; see PEFT."""
        super().set_requires_grad(adapter_names, requires_grad)
        self.refresh()

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter; see PEFT."""
        super().delete_adapter(adapter_name)
        self.refresh()

    def follow(self) -> None:
        """Bring the module in line with adapters whose `requires_grad` was changed by hand."""
        if not self._hooks and not self.disable_adapters and not self.merged and self.needs_hook():
            self.refresh()

    def _remove_hooks(self) -> None:
        for handle in self._hooks:
            handle.remove()
        self._hooks = []

    def _before(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        if module is not self.module:
            raise RuntimeError(
                f"expected the module that the adapter is attached to, got a replica of {type(module).__name__}, as "
                f"torch.nn.DataParallel makes them; run one process per device instead, with torchrun or accelerate"
            )
        if not self.disable_adapters and not self.merged:
            self.before()

    def _after(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        if self.disable_adapters:
            return None
        tasks = tasks_of(self.__dict__["tuner"])
        if tasks is not None:
            return self.after_mixed(output, names_of(tasks, output, self.module))
        if self.merged or not self.needs_hook():
            return None
        return self.after(args[0] if args else next(iter(kwargs.values())), output)


def names_of(tasks: Tasks, output: Tensor, module: nn.Module) -> tuple[str, ...]:
    """Return the adapter of each row of a module's output.

    Raises:
        ValueError: The rows are not the examples of the batch, as in modules that run on relative positions.
    """
    if output.ndim < 2 or output.shape[0] != tasks.rows:
        raise ValueError(
            f"expected a module that runs on {tasks.rows} examples, got {type(module).__name__} with an output of "
            f"shape {tuple(output.shape)}: what examples share cannot differ between tasks; run the adapters one at a "
            f"time with set_adapter, or leave such modules out with exclude_modules"
        )
    return tasks.expand(output.shape[0])


def _loaded(layer: AttachedLayer, incompatible: object) -> None:
    layer.refresh()


def trainable(parameters: Any) -> bool:
    """Whether a gradient is wanted for any of some parameters."""
    return any(isinstance(p, torch.Tensor) and p.requires_grad for p in parameters)

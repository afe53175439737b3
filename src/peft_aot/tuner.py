"""What every tuner of this package is to PEFT: adapters by name, batches that mix them, heads that go with them.

Knows nothing of what an adapter computes or stores.
"""

from __future__ import annotations

import copy
import re
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from peft_aot.model_labels import labels_of
from peft_aot.routing import (
    BASE,
    NO_TASKS,
    RoutedHead,
    Tasks,
    batch_size,
    check_batch,
    fit_heads,
    mixed_batch,
    route_heads,
    tasks_of,
)
from peft_aot.stored import StoredTuner

_CHANGING = threading.Lock()
"""Held while a mapping of tasks is replaced, which takes no time: one lock for all models will do."""


class TaskLayer(nn.Module, BaseTunerLayer):
    """A tuner layer of this package: PEFT's own, with the modules it may hold.

    Attributes:
        tuner: The tuner that owns it; no submodule, since the tuner contains the layer.
    """

    tuner: BaseTuner

    def refresh(self) -> None:
        """Do what follows from which adapters are active and which are trained, since either may have changed."""


class TaskTuner(StoredTuner):
    """A tuner whose adapters may be mixed in one batch (`adapter_names`) and bring heads of any size.

    Attributes:
        config_cls: The class of its configurations.
        cannot_mix: Why its adapters cannot be mixed in one batch, for methods where they cannot.
        injections: How many adapters were injected so far.
        banked: Tasks beside the adapters, by name; never changed, but replaced by another mapping.
    """

    config_cls: ClassVar[type[PeftConfig]]
    cannot_mix: str | None = None
    banked: Mapping[str, Any] = NO_TASKS
    target_module_mapping: dict[str, list[str]] = {}

    def __init__(self, model: nn.Module, *args: Any, **kwargs: Any) -> None:
        there = next((module for module in model.modules() if isinstance(module, TaskLayer)), None)
        if there is not None:  # checked first of all: PEFT would write into the other tuner's configurations
            raise ValueError(
                f"expected a backbone without adapters of this package, got one with {type(there).__name__}s; call "
                f"unload() on its PeftModel first, or add to that PeftModel with its load_adapter or add_adapter: "
                f"transformers' own add one adapter, get_peft_model makes a PeftModel, which takes several"
            )
        super().__init__(model, *args, **kwargs)

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        super()._pre_injection_hook(model, config, adapter_name)
        self._row_hooks: list[RemovableHandle] = []
        self.injections, self._routed_after = 0, -1  # adapters injected so far; and when heads were routed
        self._notes_rows = False  # a flag of its own, since torch.compile cannot look at handles

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the backbone; in a mixed batch, check first that every example has an adapter name."""
        tasks = tasks_of(self)
        if tasks is not None:
            check_batch(tasks, args, kwargs)
            if kwargs.get("labels") is not None:
                tasks.labels = True
                self._check_outputs(tasks)
        return super().forward(*args, **kwargs)

    def _check_outputs(self, tasks: Tasks) -> None:
        """Refuse labels for heads of another size than the one that the model computes its loss for."""
        said = labels_of(self.model)
        found = {self.outputs(name) for name in tasks.distinct if name not in tasks.banked}
        if said is not None and found and len(said.id2label) not in found:
            raise ValueError(
                f"expected heads of {len(said.id2label)} outputs when labels are passed, as the active adapter has, "
                f"got {', '.join(map(str, found))}; call set_adapter with an adapter of the batch, or leave labels out"
            )

    def change_banked(self, change: Callable[[dict[str, Any]], bool]) -> bool:
        """Put a changed copy of `banked` in its place, unless `change` returns False; batches that run keep theirs."""
        with _CHANGING:
            tasks = dict(self.banked)
            changed = change(tasks)
            if changed:
                self.banked = tasks
        return changed

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # PEFT enters this around every forward and generate
        if kwargs.get("adapter_names") is not None:
            if self.cannot_mix is not None:
                raise ValueError(
                    f"expected a call without adapter_names, got some: {self.cannot_mix}; run the adapters one at a "
                    f"time with set_adapter"
                )
            self._prepare_mixed_batches()
        with mixed_batch(self, args, kwargs, self._banked_for(kwargs)):
            yield

    def _banked_for(self, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return the tasks that a call may ask for beside adapters."""
        return self.banked

    def _prepare_mixed_batches(self) -> None:
        """Do before a mixed batch what is needed once; doing it again changes nothing."""
        injections = self.injections
        if self._routed_after != injections:  # here, since PEFT adds some heads only after it has injected the adapter
            heads = self._route_heads()
            expected = [name for name, config in self.peft_config.items() if getattr(config, "modules_to_save", None)]
            if all(any(name in head.modules_to_save for head in heads) for name in expected):
                self._routed_after = injections
        if not self._notes_rows:
            self._notes_rows = True
            stacks = [m for m in self.model.modules() if isinstance(m, PreTrainedModel)] or [self.model]
            self._row_hooks = [stack.register_forward_pre_hook(self._note_rows, with_kwargs=True) for stack in stacks]

    def _route_heads(self) -> list[RoutedHead]:
        """Route the heads that PEFT has added since this was done last."""
        return route_heads(self.model, self)

    def _note_rows(self, stack: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # a stack may be given more rows than the model: beams, choices
        tasks = tasks_of(self)
        if tasks is not None:
            tasks.rows = batch_size(args, kwargs) or tasks.rows

    def _check_new_adapter_config(self, config: PeftConfig) -> None:
        super()._check_new_adapter_config(config)
        if not isinstance(config, self.config_cls):
            raise TypeError(
                f"expected a {self.config_cls.__name__}, got {type(config).__name__}; do not mix methods in one model"
            )
        adapter_name = next(name for name, known in self.peft_config.items() if known is config)
        if adapter_name == BASE:
            raise ValueError(
                f"expected an adapter name, got '{BASE}', which means none in a mixed batch; choose another"
            )
        if adapter_name in self.banked:
            raise ValueError(
                f"expected a new adapter name, got '{adapter_name}', the name of a task in the model's bank; choose "
                f"another, or remove that task"
            )
        if hasattr(nn.ModuleDict(), adapter_name) or hasattr(nn.ParameterDict(), adapter_name):
            raise ValueError(
                f"expected an adapter name that torch can keep modules under, got '{adapter_name}', the name of one of "
                f"its own methods or attributes; choose another name"
            )
        for path, _ in self.model.named_modules():
            if path.rpartition(".")[2] == adapter_name:
                raise ValueError(
                    f"expected an adapter name that no module of the model has, got '{adapter_name}', the name of a "
                    f"module ({path}), below which PEFT would save nothing; choose another name"
                )
        for path, _ in self.model.named_parameters():
            if path.rpartition(".")[2] == adapter_name and self.prefix not in path:
                raise ValueError(
                    f"expected an adapter name that no parameter of the model has, got '{adapter_name}', the name of "
                    f"one ({path}), which PEFT would not find again in what it saves; choose another name"
                )

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """Add an adapter to the backbone; see PEFT. Of one that cannot be added beside others nothing stays."""
        active = self.active_adapter
        self.injections += 1
        try:
            super().inject_adapter(model, adapter_name, *args, **kwargs)
        except BaseException:
            if len(self.peft_config) > 1:
                self.delete_adapter(adapter_name)
                self.active_adapter = active
            raise
        self._refresh_layers()  # PEFT sets `requires_grad` behind their backs

    def set_adapter(self, adapter_name: str | list[str], inference_mode: bool = False) -> None:
        """Activate adapters; the backbone's configuration says what their outputs mean."""
        super().set_adapter(adapter_name, inference_mode)
        self.say_labels()

    def disable_adapter_layers(self) -> None:
        """Run the backbone alone; its configuration says what its own outputs mean."""
        super().disable_adapter_layers()
        self.say_labels(active=False)

    def enable_adapter_layers(self) -> None:
        """Run the active adapters again."""
        super().enable_adapter_layers()
        self.say_labels()

    def _add_beside(self, config: PeftConfig, adapter_name: str, first: str) -> None:
        """Add an adapter, fresh but for its heads, which are copies of those of adapter `first`."""
        self.peft_config[adapter_name] = config
        self.inject_adapter(self.model, adapter_name)
        for wrapper in self.model.modules():
            if isinstance(wrapper, ModulesToSaveWrapper) and first in wrapper.modules_to_save:
                head = copy.deepcopy(wrapper.modules_to_save[first])
                wrapper.modules_to_save[adapter_name] = head.requires_grad_(False)  # it is not active
        if first in self.head_cards:
            self.head_cards[adapter_name] = self.head_cards[first]

    def _refresh_layers(self) -> None:
        for module in self.model.modules():
            if isinstance(module, TaskLayer):
                module.refresh()

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's version moves `weight` about, which blocks do not have and which heads must not
        setattr(parent, child_name, new_module)

    def unload(self) -> nn.Module:
        """Return the backbone as it was before any adapter, with its own heads."""
        route_heads(self.model, self)
        self._leave_stacks()
        self.say_labels(active=False)
        model: nn.Module = super().unload()
        return model

    def _leave_stacks(self) -> None:
        for handle in self._row_hooks:
            handle.remove()

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        check_finite(state_dict)
        fit_heads(model, adapter_name, state_dict)
        remapped: dict[str, Tensor] = super()._remap_adapter_state_dict_for_load(
            model=model, config=config, adapter_name=adapter_name, state_dict=state_dict
        )
        return remapped


def check_finite(state_dict: dict[str, Tensor]) -> None:
    """Refuse saved values that are not numbers.

    Raises:
        ValueError: NaN or infinity in a tensor; the message names it.
    """
    for name, tensor in state_dict.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise ValueError(
                f"expected finite values in the saved adapter, got NaN or infinity in {name}; train it again or load "
                f"an earlier checkpoint"
            )


def matches(patterns: Sequence[str] | str | None, key: str) -> bool:
    """Match a name as PEFT does: a str is a regex for the whole name, a list holds names or endings of names."""
    if patterns is None:
        return False
    if isinstance(patterns, str):
        return re.fullmatch(patterns, key) is not None
    return any(key == pattern or key.endswith(f".{pattern}") for pattern in patterns)

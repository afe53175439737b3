"""Who answers which example: the tasks of one call, and the head that each task brings.

PEFT's mixed batches (`adapter_names`) loop over adapters in every layer and support neither composite heads nor heads
of different sizes. Here names are resolved once per call, per thread, and every example meets its own head. Knows
nothing of what an adapter computes.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from peft.tuners.tuners_utils import BaseTuner
from peft.utils.other import ModulesToSaveWrapper
from torch import Tensor, nn

from peft_aot.suggestions import did_you_mean

BASE = "__base__"


class TaskHeads(Protocol):
    """A task that is no adapter of the model: its heads, by their names in the model."""

    @property
    def heads(self) -> Mapping[str, nn.Module]:
        """The heads."""


NO_TASKS: Mapping[str, Any] = {}


@dataclass
class Tasks:
    """The adapter of every example of one call.

    Attributes:
        tuner: The tuner whose model is being called; layers of another model ignore these tasks.
        names: One adapter name or `"__base__"` per example.
        labels: True if the call carries labels, so that the model will compute a loss from the logits.
        rows: Examples that the stack now running was given, beams and choices counted; kept by tuners that ask.
        banked: Tasks beside the model's adapters, by name, as they were when the call began.
        distinct: Every name once, in order.
    """

    tuner: BaseTuner = field(repr=False)
    names: tuple[str, ...]
    labels: bool = False
    rows: int = 0
    banked: Mapping[str, Any] = field(default_factory=lambda: NO_TASKS, repr=False)
    distinct: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.rows = self.rows or len(self.names)
        self.distinct = tuple(dict.fromkeys(self.names))

    def expand(self, rows: int) -> tuple[str, ...]:
        """Return the names for a batch of `rows`, which beams, returned sequences or choices may have multiplied."""
        times, rest = divmod(rows, len(self.names))
        if rest or not times:
            raise ValueError(
                f"expected a batch whose size is a multiple of the {len(self.names)} adapter_names, got {rows} rows; "
                f"pass one name per example"
            )
        return tuple(name for name in self.names for _ in range(times))


class _PerThread(threading.local):
    def __init__(self) -> None:
        self.calls: list[Tasks] = []


_THREAD = _PerThread()


def tasks_of(tuner: BaseTuner) -> Tasks | None:
    """Return the tasks of the call of `tuner`'s model that this thread is in, or None outside a mixed batch."""
    calls = _THREAD.calls
    return calls[-1] if calls and calls[-1].tuner is tuner else None


def check_names(adapter_names: object, known: Collection[str], banked: Collection[str] = ()) -> tuple[str, ...]:
    """Validate the `adapter_names` argument of a call.

    Raises:
        TypeError: Not a list or tuple of str.
        ValueError: Empty, or an unknown name.
    """
    if not isinstance(adapter_names, (list, tuple)) or not all(isinstance(n, str) for n in adapter_names):
        raise TypeError(f"expected adapter_names to be a list of str, got {adapter_names!r}; pass one name per example")
    if not adapter_names:
        raise ValueError("expected one adapter name per example, got an empty adapter_names; leave the argument out")
    for name in adapter_names:
        if name != BASE and name not in known and name not in banked:
            hint = did_you_mean(name, [*known, *banked, BASE])
            raise ValueError(f"expected the names of loaded adapters, got unknown '{name}'; {hint} or load it first")
    return tuple(adapter_names)


def batch_size(args: Sequence[object], kwargs: Mapping[str, object]) -> int | None:
    """Return the number of examples of a call's inputs, or None if no input is visible."""
    named = [kwargs.get(k) for k in ("input_ids", "inputs_embeds", "inputs", "decoder_input_ids", "X")]
    for value in [*args[:1], *named]:
        if isinstance(value, Tensor):
            return value.shape[0]
    return None


def check_batch(tasks: Tasks, args: Sequence[object], kwargs: Mapping[str, object]) -> None:
    """Refuse a batch that has not as many examples as the call has adapter names."""
    size = batch_size(args, kwargs)
    if size is not None and size != len(tasks.names):
        raise ValueError(
            f"expected as many adapter_names as examples, got {len(tasks.names)} names for {size} examples; "
            f"pass one name per example"
        )


@contextmanager
def mixed_batch(
    tuner: BaseTuner, args: Sequence[object], kwargs: Mapping[str, Any], banked: Mapping[str, Any] = NO_TASKS
) -> Iterator[None]:
    """For the duration of one call, let `tasks_of(tuner)` tell the adapter of every example.

    Without `adapter_names` among `kwargs` the call is not mixed, whatever call it is nested in. `banked` are tasks
    beside the model's adapters, see `Tasks`.
    """
    names = kwargs.get("adapter_names")
    if names is None:
        calls = _THREAD.calls
        if calls and calls[-1].tuner is tuner:  # a nested plain call must not inherit the outer call's tasks
            hidden, _THREAD.calls = calls, []
            try:
                yield
            finally:
                _THREAD.calls = hidden
        else:
            yield
        return
    if tuner.training:
        raise ValueError(
            "expected a model in evaluation mode for a mixed batch, got one in training mode; call model.eval() first, "
            "or train one adapter at a time with set_adapter"
        )
    names = check_names(names, tuner.peft_config, banked)
    tasks = Tasks(tuner, names, labels=kwargs.get("labels") is not None, banked=banked)
    check_batch(tasks, args, kwargs)
    _THREAD.calls.append(tasks)
    try:
        yield
    finally:
        _THREAD.calls.pop()


class RoutedHead(ModulesToSaveWrapper):
    """A trained copy of a module per adapter (a classification head), routed per example in a mixed batch.

    PEFT's wrapper does this for single linear layers of one size; this one for any module and any output width.

    Attributes:
        tuner: The tuner whose calls are routed.
        path: The head's name in the model.
    """

    tuner: BaseTuner
    path: str

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Run the active adapter's head or, in a mixed batch, on each example the head of its own adapter."""
        tasks = tasks_of(self.tuner)
        if tasks is None or self.disable_adapters:
            return ModulesToSaveWrapper.forward(self, *args, **kwargs)  # type: ignore[no-untyped-call]
        features, rest = args[0], args[1:]
        if features.shape[0] != tasks.rows:
            kind, shape = type(self.original_module).__name__, tuple(features.shape)
            raise ValueError(
                f"expected a head that runs on {tasks.rows} examples, got {kind} with an input of shape {shape}: what "
                f"examples share cannot differ between tasks; leave it out of modules_to_save, or run the adapters one "
                f"at a time with set_adapter"
            )
        names = tasks.expand(features.shape[0])
        outputs: dict[int, Tensor] = {}
        for name in dict.fromkeys(names):
            rows = [i for i, n in enumerate(names) if n == name]
            head = self._head(tasks, name)
            logits = head(features if len(rows) == len(names) else features[rows], *rest, **kwargs)
            if not isinstance(logits, Tensor):
                raise TypeError(
                    f"expected a head that returns one tensor, got {type(logits).__name__} from {type(head).__name__}; "
                    f"run the adapters one at a time with set_adapter"
                )
            outputs.update(zip(rows, logits, strict=True))
        width = max(o.shape[-1] for o in outputs.values())
        if tasks.labels and any(o.shape[-1] != width for o in outputs.values()):
            raise ValueError(
                "expected heads of one size when labels are passed, got heads with different num_labels; "
                "leave labels out and compute the loss of each task from its own logits"
            )
        return torch.stack([_widen(outputs[i], width) for i in range(len(names))])

    def _head(self, tasks: Tasks, name: str) -> nn.Module:
        if name in tasks.banked:
            task: TaskHeads = tasks.banked[name]
            return _moved(task.heads.get(self.path, self.original_module), self.original_module)
        return self.modules_to_save._modules.get(name) or self.original_module

    def unload_and_optionally_merge_module(
        self, merge: bool, safe_merge: bool, adapter_names: list[str] | None
    ) -> nn.Module:
        """Return the backbone's own head or, if adapters are being merged, the active adapter's."""
        if merge:
            head: nn.Module = ModulesToSaveWrapper.unload_and_optionally_merge_module(
                self, merge, safe_merge, adapter_names
            )
            return head
        original: nn.Module = self.original_module
        return original


def _moved(head: nn.Module, like: nn.Module) -> nn.Module:
    """Move a head, in place, to the device and number format of the model's own, which is moved with the model."""
    there, own = next(head.parameters(), None), next(like.parameters(), None)
    if there is None or own is None or own.device.type == "meta":
        return head
    return head if (there.device, there.dtype) == (own.device, own.dtype) else head.to(own.device, own.dtype)


def _widen(logits: Tensor, width: int) -> Tensor:
    missing = width - logits.shape[-1]
    if not missing:
        return logits
    # -inf takes no probability, so softmax and argmax stay those of the narrow head
    return nn.functional.pad(logits, (0, missing), value=float("-inf"))


def route_heads(model: nn.Module, tuner: BaseTuner) -> list[RoutedHead]:
    """Turn every wrapper of PEFT's `modules_to_save` below `model` into a `RoutedHead`, in place; return them."""
    for name, module in model.named_modules():
        if type(module) is ModulesToSaveWrapper:
            module.__dict__["tuner"] = tuner  # not a submodule: the tuner contains this head
            module.__dict__["path"] = name
            module.__class__ = RoutedHead  # last, since other threads may be calling it
    return [module for module in model.modules() if isinstance(module, RoutedHead)]


def fit_heads(model: nn.Module, adapter_name: str, state_dict: Mapping[str, Tensor]) -> None:
    """Give the adapter's heads the sizes of the weights about to be loaded.

    PEFT copies the backbone's own head for each adapter, so that an adapter with 7 labels would not load into a
    backbone made for 2. Every linear layer of a head whose saved weight has another shape is replaced.
    """
    for name, wrapper in model.named_modules():
        if not isinstance(wrapper, ModulesToSaveWrapper) or adapter_name not in wrapper.modules_to_save:
            continue
        fit_linears(wrapper.modules_to_save, adapter_name, f"{name}.modules_to_save.{adapter_name}", state_dict)


def fit_linears(holder: nn.ModuleDict, key: str, prefix: str, state_dict: Mapping[str, Tensor]) -> None:
    """Give the linear layers of a head the sizes of weights: every one whose weight has another shape is replaced.

    Args:
        holder: What holds the head.
        key: Under which name.
        prefix: The head's name in `state_dict`.
        state_dict: The weights.
    """
    for path, module in list(holder[key].named_modules()):
        name = prefix + (f".{path}" if path else "")
        weight = state_dict.get(f"{name}.weight")
        if not isinstance(module, nn.Linear) or weight is None or weight.shape == module.weight.shape:
            continue
        fitted = nn.Linear(
            weight.shape[1],
            weight.shape[0],
            bias=f"{name}.bias" in state_dict,
            device=module.weight.device,
            dtype=module.weight.dtype,
        )
        fitted.requires_grad_(module.weight.requires_grad)
        parent, _, leaf = f"{key}.{path}".rstrip(".").rpartition(".")
        setattr(holder.get_submodule(parent) if parent else holder, leaf, fitted)

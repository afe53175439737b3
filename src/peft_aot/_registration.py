"""Making PEFT know the methods of this package, as a fork would; the only file that changes PEFT itself or an enum.

Importing `peft_aot` calls `register()`. It adds each method to `PeftType` and to PEFT's mappings, puts its classes into
the `peft` namespaces, and lets `PeftModel` save, load and push adapters of this package as `files` does, the automatic
classes with the options of its methods.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from enum import Enum
from types import MappingProxyType
from typing import Any

import peft
from aenum import extend_enum
from packaging.version import Version
from peft import PeftModel
from peft.auto import _BaseAutoPeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.tuners.tuners_utils import BaseTuner
from peft.utils import PeftType, register_peft_method

from peft_aot.counting import count_optimizer_steps

METHODS = {"aot": "AoT", "bitfit": "BitFit", "hiwi": "HiWi", "houlsby": "Houlsby", "pafi": "PaFi"}
SUPPORTED = (Version("0.21.2"), Version("0.22"))
_OPTIONS: ContextVar[Mapping[str, Any]] = ContextVar("_OPTIONS", default=MappingProxyType({}))
"""What `AutoPeftModel...from_pretrained` was given for the adapter, and PEFT would pass to the backbone's class too."""


def check_version(version: str) -> None:
    """Refuse a PEFT whose insides are not known to fit.

    Raises:
        ImportError: Outside the supported range; the message says which versions work.
    """
    low, high = SUPPORTED
    if not low <= Version(version) < high:
        raise ImportError(f"expected peft >={low},<{high}, got peft {version}; run `pip install 'peft>={low},<{high}'`")


def extend_peft_type(enum: type[Enum], name: str) -> None:
    """Add a member to PEFT's enumeration of methods; adding it twice changes nothing."""
    if name not in enum.__members__:
        extend_enum(enum, name, name)


def register() -> None:
    """Register every method of this package with PEFT; registering twice changes nothing."""
    check_version(peft.__version__)
    for name in METHODS:
        extend_peft_type(PeftType, name.upper())
    for name, prefix in METHODS.items():
        # the classes need their member of PeftType to exist, so that they are imported here
        package = importlib.import_module(f"peft_aot.{name}")
        _register_method(name, getattr(package, f"{prefix}Config"), getattr(package, f"{prefix}Model"))
    _patch_peft_model()
    count_optimizer_steps()


def _register_method(name: str, config_cls: type, model_cls: type[BaseTuner]) -> None:
    if PeftType[name.upper()] not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls, prefix=model_cls.prefix)
    for module in (peft, peft.tuners):
        for cls in (config_cls, model_cls):
            setattr(module, cls.__name__, cls)
            if cls.__name__ not in module.__all__:
                module.__all__.append(cls.__name__)


def _patch_peft_model() -> None:
    files = importlib.import_module("peft_aot.files")
    tuner = importlib.import_module("peft_aot.tuner").TaskTuner
    stored_tuners = importlib.import_module("peft_aot.stored").stored_tuners
    keep_backbone = importlib.import_module("peft_aot.undo").keep_backbone

    def save_pretrained(original: Callable[..., Any], self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.base_model, tuner):
            named = inspect.signature(original).bind(self, *args, **kwargs).arguments
            named.pop("self")
            return files.save_adapters(self, functools.partial(original, self), **named.pop("kwargs", {}), **named)
        return original(self, *args, **kwargs)

    def load_adapter(original: Callable[..., Any], self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.base_model, tuner):
            return files.load_adapter(self, functools.partial(original, self), *args, **kwargs)
        return original(self, *args, **kwargs)

    def push_to_hub(original: Callable[..., Any], self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.base_model, tuner):
            return files.push_adapters(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    def from_pretrained(
        original: Callable[..., Any], cls: type[PeftModel], model: Any, *args: Any, **kwargs: Any
    ) -> Any:
        with keep_backbone(model):
            return original(cls, model, *args, **{**_OPTIONS.get(), **kwargs})

    def auto_from_pretrained(original: Callable[..., Any], cls: type, *args: Any, **kwargs: Any) -> Any:
        known = frozenset().union(*(stored.load_options for stored in stored_tuners().values()))
        before = _OPTIONS.set({name: kwargs.pop(name) for name in known if name in kwargs})
        try:
            return original(cls, *args, **kwargs)
        finally:
            _OPTIONS.reset(before)

    for replacement in (save_pretrained, load_adapter, push_to_hub, from_pretrained):
        _replace(PeftModel, replacement.__name__, replacement)
    _replace(_BaseAutoPeftModel, "from_pretrained", auto_from_pretrained)


def _replace(owner: type, name: str, replacement: Callable[..., Any]) -> None:
    static = inspect.getattr_static(owner, name)
    of_class = isinstance(static, classmethod)
    original = static.__func__ if of_class else static
    if getattr(original, "_peft_aot", False):
        return

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return replacement(original, self, *args, **kwargs)

    method._peft_aot = True  # type: ignore[attr-defined]
    setattr(owner, name, classmethod(method) if of_class else method)

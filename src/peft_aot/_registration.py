"""Making PEFT know the methods of this package, as a fork would; the only file that changes PEFT itself or an enum.

Importing `peft_aot` calls `register()`. It adds each method to `PeftType` and to PEFT's mappings, puts its classes into
the `peft` namespaces, and lets `PeftModel` save, load and push an AoT adapter's table with the adapter.
"""

from __future__ import annotations

import functools
import importlib
import inspect
from collections.abc import Callable
from enum import Enum
from typing import Any

import peft
from aenum import extend_enum
from packaging.version import Version
from peft import PeftModel
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from peft.utils import PeftType, register_peft_method

METHODS = {"aot": "AoT", "bitfit": "BitFit"}
SUPPORTED = (Version("0.21.2"), Version("0.22"))


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


def _register_method(name: str, config_cls: type, model_cls: type) -> None:
    if PeftType[name.upper()] not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=name, config_cls=config_cls, model_cls=model_cls)
    for module in (peft, peft.tuners):
        for cls in (config_cls, model_cls):
            setattr(module, cls.__name__, cls)
            if cls.__name__ not in module.__all__:
                module.__all__.append(cls.__name__)


def _patch_peft_model() -> None:
    files = importlib.import_module("peft_aot.aot.files")
    tuner = importlib.import_module("peft_aot.aot.model").AoTModel

    def save_pretrained(original: Callable[..., Any], self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.base_model, tuner):
            named = inspect.signature(original).bind(self, *args, **kwargs).arguments
            named.pop("self")
            return files.save_adapters(self, functools.partial(original, self), **named.pop("kwargs", {}), **named)
        return original(self, *args, **kwargs)

    def load_adapter(
        original: Callable[..., Any], self: PeftModel, model_id: str, adapter_name: str, *args: Any, **kwargs: Any
    ) -> Any:
        if not isinstance(self.base_model, tuner):
            return original(self, model_id, adapter_name, *args, **kwargs)
        use_table = kwargs.pop("use_table", True)
        files.before_loading(self, model_id, adapter_name, **kwargs)
        result = original(self, model_id, adapter_name, *args, **kwargs)
        files.adapter_loaded(self, model_id, adapter_name, use_table, **kwargs)
        return result

    def push_to_hub(original: Callable[..., Any], self: PeftModel, *args: Any, **kwargs: Any) -> Any:
        if isinstance(self.base_model, tuner):
            return files.push_adapters(self, *args, **kwargs)
        return original(self, *args, **kwargs)

    for replacement in (save_pretrained, load_adapter, push_to_hub):
        _replace(PeftModel, replacement.__name__, replacement)


def _replace(owner: type, name: str, replacement: Callable[..., Any]) -> None:
    original = getattr(owner, name)
    if getattr(original, "_peft_aot", False):
        return

    @functools.wraps(original)
    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        return replacement(original, self, *args, **kwargs)

    method._peft_aot = True  # type: ignore[attr-defined]
    setattr(owner, name, method)

"""A layer whose adapters live in the backbone's own parameters: written there on activation, taken out exactly.

The module then computes what it always computes, at the price of the backbone; switching adapters writes as many values
as they change. In training the parameters are written anew whenever the adapter has changed, and the gradient is
carried to it by a hook that leaves the output alone. Knows nothing of what is written.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import check_adapters_to_merge
from torch import Tensor

from .layer import AttachedLayer, trainable

_WRITING = threading.RLock()  # one for all layers, so that copies and pickles of a layer have none


@dataclass(frozen=True)
class Change:
    """What an adapter does to one parameter.

    Attributes:
        parameter: Its name in the module, "weight" or "bias".
        indices: (k,) int64, the flat entries that change; None for all.
        delta: (k,) or the parameter's shape; what is added to them.
    """

    parameter: str
    indices: Tensor | None
    delta: Tensor


@dataclass(frozen=True)
class Original:
    """Values that were overwritten, in the form of a `Change`."""

    parameter: str
    indices: Tensor | None
    values: Tensor


class WrittenLayer(AttachedLayer):
    """See the module; a method says what its adapters change (`changes`) and what they are made of (`factors`)."""

    def __init__(self, *args: object, **kwargs: object) -> None:
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._written: list[str] = []
        self._stamp: tuple[tuple[int, int], ...] = ()
        self._originals: list[Original] = []

    # what a method must say

    def has(self, adapter_name: str) -> bool:
        """Whether an adapter changes this module."""
        raise NotImplementedError

    def factors(self, adapter_name: str) -> list[Tensor]:
        """Return the tensors that an adapter's changes are computed from."""
        raise NotImplementedError

    def changes(self, adapter_name: str) -> list[Change]:
        """Compute what an adapter changes."""
        raise NotImplementedError

    # writing

    @property
    def written(self) -> list[str]:
        """The adapters whose changes stand in the module now."""
        return list(self._written)

    def refresh(self) -> None:
        """Write the active adapters into the module, and be ready to write again while they are trained."""
        self._write(self._wanted())
        super().refresh()

    def before(self) -> None:
        """Write adapters that have changed since."""
        if torch.compiler.is_compiling():  # version counters cannot be read there
            self._put_back()
            for _ in self._add(self._written):
                pass
        else:
            self._write(self._wanted())

    def needs_hook(self) -> bool:
        """Whether a gradient is wanted for an active adapter."""
        return any(trainable(self.factors(name)) for name in self.active_adapters if self.has(name))

    def carrying(self) -> list[str]:
        """Return the active adapters that a gradient is to be carried to now."""
        if not torch.is_grad_enabled():
            return []
        return [name for name in self._written if trainable(self.factors(name))]

    def original(self, parameter: str) -> Tensor:
        """Return a parameter as it is without adapters, given that they change all of it or nothing."""
        for kept in self._originals:
            if kept.parameter == parameter:
                return kept.values.to(self.parameter(parameter)).view_as(self.parameter(parameter))
        return self.parameter(parameter).detach()

    def lift(self) -> None:
        """Take every adapter out until `refresh`: the parameters are what they were, bit for bit."""
        self._write([])

    def _wanted(self) -> list[str]:
        names = [] if self.disable_adapters else self.merged_adapters or self.active_adapters
        here = [name for name in names if self.has(name)]
        return [name for name in here if not any(f.is_meta for f in self.factors(name))]  # not loaded yet

    def _write(self, names: list[str]) -> None:
        with _WRITING:  # threads may be the first to call a model whose adapter has just been trained
            factors = [factor for name in names for factor in self.factors(name)]
            stamp = tuple((id(f), -1 if f.is_inference() else f._version) for f in factors)
            if names == self._written and stamp == self._stamp:
                return
            self._check_in_memory()
            self._put_back()
            self._originals = list(self._add(names))
            self._written, self._stamp = names, stamp

    def _check_in_memory(self) -> None:
        away = [name for name, p in self.module.named_parameters(recurse=False) if p.is_meta]
        if away:
            raise ValueError(
                f"expected parameters in memory, got an offloaded {away[0]} in {type(self.module).__name__}, which "
                f"cannot be changed; load the backbone on devices that hold all of it"
            )

    def _put_back(self) -> None:
        for kept in reversed(self._originals):
            self._put(kept.parameter, kept.indices, kept.values)

    def _add(self, names: list[str]) -> Iterator[Original]:
        with torch.no_grad():
            # all are computed before the first is written, since they may depend on the original
            for change in [change for name in names for change in self.changes(name)]:
                flat = self.parameter(change.parameter).detach().view(-1)
                old = flat.clone() if change.indices is None else flat[change.indices]
                self._put(change.parameter, change.indices, old + change.delta.reshape(-1).to(old.device))
                yield Original(change.parameter, change.indices, old)

    def _put(self, parameter: str, indices: Tensor | None, values: Tensor) -> None:
        with torch.no_grad():
            flat = self.parameter(parameter).detach().view(-1)
            if indices is None:
                flat.copy_(values)
            else:
                flat.index_copy_(0, indices, values.to(flat))

    # life

    def delete_adapter(self, adapter_name: str) -> None:
        """Take an adapter out of the module and delete it; see PEFT."""
        if adapter_name in self._written:
            self.lift()
        super().delete_adapter(adapter_name)

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Keep adapters written, whatever is active, until `unmerge`.

        Raises:
            ValueError: `safe_merge`, and a merged value would not be finite.
        """
        names = [name for name in check_adapters_to_merge(self, adapter_names) if self.has(name)]
        before = self.merged_adapters
        self.merged_adapters = [*before, *names]
        self.refresh()
        if safe_merge and not self._is_finite():
            self.merged_adapters = before
            self.refresh()
            raise ValueError(
                f"expected finite values to merge, got NaN or infinity from adapters {names}; the adapter is broken, "
                f"or too large for the backbone's number format: load an earlier checkpoint, or a float32 backbone"
            )

    def _is_finite(self) -> bool:
        for kept in self._originals:
            flat = self.parameter(kept.parameter).detach().view(-1)
            if not torch.isfinite(flat if kept.indices is None else flat[kept.indices]).all():
                return False
        return True

    def unmerge(self) -> None:
        """Let the active adapters decide again what is written."""
        self.merged_adapters = []
        self.refresh()

    def leave(self, merged: bool) -> None:
        """Leave the module for good: restored, or with what has been merged into it."""
        if not merged:
            self.lift()
        super().leave(merged)

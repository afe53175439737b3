"""The wrapped blocks of a stack, their adapters' factors side by side, and rows from them; those computed are kept."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from peft_aot.backbone import input_embedding
from peft_aot.tables.cache import Key, RowCache

from .reparam import FCRows, HiddenBottleneck
from .stacked import OffloadedFactors, StackedFactors

_NUMBERS = itertools.count()


class State(NamedTuple):
    """What may change about an adapter's factors.

    Attributes:
        trains: Whether a gradient is wanted of one of them.
        drops: Whether one of its modules is in training mode, where dropout acts.
        versions: A fingerprint of them, and of the embeddings they are fed, if they are fed any; it changes with every
            change but those through `.data`.
    """

    trains: bool
    drops: bool
    versions: tuple[int, ...]


class Wanted(NamedTuple):
    """Rows of one task that are to be written.

    Attributes:
        factors: The task's factors.
        tokens: (U,) int64, distinct.
        places: For each token a column.
    """

    factors: StackedFactors
    tokens: Tensor
    places: Sequence[int]


class StackRows:
    """The wrapped blocks of one stack, in the order of wrapping, and the rows that adapters add before them.

    Args:
        stack: The stack.

    Attributes:
        blocks: Names of the blocks.
        slots: Number of a block among them, by name.
        modules: Of every block, its modules by adapter name.
        width: D.
        page_bytes: What the rows of one token take at most.
        budget: Bytes for rows that were computed before, at least `page_bytes`; None keeps none.
        cache: Those rows.
    """

    def __init__(self, stack: nn.Module) -> None:
        self.stack = stack
        self.blocks: tuple[str, ...] = ()
        self.slots: dict[str, int] = {}
        self.modules: tuple[nn.ModuleDict, ...] = ()
        self.width = 0
        self.page_bytes = 0
        self.budget: int | None = None
        self.cache: RowCache | None = None
        self._stacked: dict[str, tuple[object, StackedFactors, object]] = {}
        self._embedded: tuple[Tensor, int, int] | None = None
        self._warned = False

    def __getstate__(self) -> dict[str, object]:
        # copied tensors count their versions anew, so that what was computed from them cannot be told from what was not
        return {**self.__dict__, "cache": None, "_stacked": {}, "_embedded": None}

    def add(self, block: str, modules: nn.ModuleDict, width: int) -> None:
        """Note one more wrapped block, whose hidden states have `width` numbers."""
        self.width = width
        self.page_bytes += width * torch.float64.itemsize
        self.slots[block] = len(self.blocks)
        self.blocks += (block,)
        self.modules += (modules,)

    def modules_of(self, adapter_name: str) -> list[nn.Module]:
        """Return the adapter's modules in the order of wrapping."""
        found = (modules._modules.get(adapter_name) for modules in self.modules)
        return [module for module in found if module is not None]

    def state_of(self, adapter_name: str) -> State:
        """Return what may have changed about an adapter's factors since they were last looked at."""
        # in every batch, for every adapter of it: one pass, without the detours of `parameters()`
        trains = drops = fed = False
        versions: list[int] = []
        for modules in self.modules:
            module = modules._modules.get(adapter_name)
            if module is None:
                continue
            drops = drops or module.training
            fed = fed or isinstance(module, FCRows)
            for parameter in module._parameters.values():
                if parameter is not None:
                    trains = trains or parameter.requires_grad
                    if not torch.compiler.is_compiling():  # graphs cannot look
                        versions += id(parameter), version(parameter)
        embedding = input_embedding(self.stack) if fed and not torch.compiler.is_compiling() else None
        if embedding is not None and not embedding.weight.is_meta:  # one that is offloaded is another one in every call
            versions += id(embedding.weight), version(embedding.weight)
        return State(trains, drops, tuple(versions))

    def factors_of(self, adapter_name: str) -> StackedFactors:
        """Return an adapter's factors as they are now, laid side by side."""
        modules = [block._modules.get(adapter_name) for block in self.modules]
        now = [p for module in modules if module is not None for p in module._parameters.values() if p is not None]
        places = [(parameter.dtype, parameter.data_ptr()) for parameter in now]  # `to` counts no versions
        made_of = self.state_of(adapter_name).versions, places
        known = self._stacked.get(adapter_name)
        if known is None or known[0] != made_of:
            rows: list[Any] = [None if isinstance(module, HiddenBottleneck) else module for module in modules]
            offloaded = any(parameter.device.type == "meta" for parameter in now)
            factors = OffloadedFactors(rows) if offloaded else StackedFactors(rows)
            # with the tensors themselves, so that no others can take over their identity
            known = self._stacked[adapter_name] = made_of, factors, now
        return known[1]

    def read(self, rows: Tensor, wanted: Sequence[Wanted], embed: Callable[[Tensor], Tensor], blocks: slice) -> None:
        """Write rows of several tasks, those from the cache that are there; the others are computed.

        Args:
            rows: (L, S, D) for the L blocks that are asked for; columns that are wanted are written, with zero for
                blocks that a task leaves alone.
            wanted: Which rows, and where they go.
            embed: Returns the embeddings (U, E) of tokens (U,).
            blocks: Which blocks. The cache holds rows of all of them, and is used when all are asked for.
        """
        cache = self._cache_for(rows) if len(rows) == len(self.blocks) else None
        if cache is None:
            _compute(rows, wanted, embed, blocks)
            return
        circumstances = self._circumstances()
        factors_of: dict[Hashable, StackedFactors] = {}
        keys: list[Key] = []
        for factors, own, _ in wanted:
            task = factors.number, *circumstances
            factors_of[task] = factors
            keys += [(task, token) for token in own.tolist()]
        self._warn_of_size(cache, len(keys))
        places = [place for one in wanted for place in one.places]
        missing = cache.take(keys, places, rows)
        if missing:
            lacking = [keys[number] for number in missing]
            computed = rows.new_empty(rows.shape[0], len(missing), rows.shape[2])
            tokens = torch.tensor([token for _, token in lacking], device=rows.device)
            _compute(computed, _side_by_side(lacking, factors_of, tokens), embed, blocks)
            cache.put(lacking, computed)
            columns = torch.tensor([places[number] for number in missing], device=rows.device)
            rows.index_copy_(1, columns, computed)

    def _circumstances(self) -> tuple[object, ...]:
        """Return what rows depend on beside tokens and factors: precision, and a number for the embeddings as now."""
        embedding = input_embedding(self.stack)
        if embedding is not None:
            weight, now = embedding.weight, version(embedding.weight)
            known = self._embedded
            # with the tensor itself, so that no other can take over its identity
            if known is None or known[0] is not weight or known[1] != now:
                self._embedded = weight, now, next(_NUMBERS)
        return precision("cpu"), None if self._embedded is None else self._embedded[2]

    def _cache_for(self, rows: Tensor) -> RowCache | None:
        """Return the cache that `rows` may be read from and kept in, or None: on an accelerator copying costs more."""
        if self.budget is None or rows.device.type != "cpu":
            return None
        layers, _, width = rows.shape
        if layers * width * rows.element_size() > self.budget:  # more blocks were wrapped since
            return None
        cache = self.cache
        if cache is None or not cache.holds(layers, width, rows.dtype):
            cache = self.cache = RowCache(self.budget, layers, width, rows.dtype)
        return cache

    def forget(self, adapter_name: str) -> None:
        """Do not use what was computed for an adapter any more."""
        self._stacked.pop(adapter_name, None)

    def _warn_of_size(self, cache: RowCache, tokens: int) -> None:
        if tokens > cache.pages and not self._warned:
            self._warned = True
            warnings.warn(
                f"expected a row cache that holds the {tokens} distinct tokens of a batch, got room for {cache.pages}; "
                f"most rows are computed anew in every batch, give set_table_placement() a larger memory_budget",
                stacklevel=2,
            )


def _compute(rows: Tensor, wanted: Sequence[Wanted], embed: Callable[[Tensor], Tensor], blocks: slice) -> None:
    if not wanted:
        return
    sizes = [len(one.tokens) for one in wanted]
    embeddings = embed(torch.cat([one.tokens for one in wanted]))
    inputs: dict[object, Sequence[Tensor]] = {}
    for number, (factors, tokens, places) in enumerate(wanted):
        if factors.recipe not in inputs:
            inputs[factors.recipe] = torch.split(factors.inputs(embeddings), sizes)
        fed = inputs[factors.recipe][number]
        if isinstance(places, range):
            factors.compute(rows[:, places.start : places.stop], tokens, fed, blocks)
        else:
            computed = rows.new_empty(rows.shape[0], len(tokens), rows.shape[2])
            factors.compute(computed, tokens, fed, blocks)
            rows[:, places] = computed


def _side_by_side(keys: Sequence[Key], factors: Mapping[Hashable, StackedFactors], tokens: Tensor) -> list[Wanted]:
    """Return what is wanted where rows of these keys, those of one task together, are to be one column each."""
    start, found = 0, []
    for task, own in itertools.groupby(keys, key=itemgetter(0)):
        stop = start + sum(1 for _ in own)
        found.append(Wanted(factors[task], tokens[start:stop], range(start, stop)))
        start = stop
    return found


def version(tensor: Tensor) -> int:
    """Return a number that changes with every change of a tensor but those through `.data`."""
    return -1 if tensor.is_inference() else tensor._version  # tensors made under inference_mode count none


def precision(device_type: str) -> torch.dtype | None:
    """Return the number format of matrix products under autocast, or None if it is off."""
    return torch.get_autocast_dtype(device_type) if torch.is_autocast_enabled(device_type) else None

"""Rows from the factors, for all wrapped blocks of a stack at once; those computed before are kept if there is room."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn

from peft_aot.backbone import input_embedding
from peft_aot.tables.cache import RowCache

from .reparam import FCRows, HiddenBottleneck

_NUMBERS = itertools.count()


class StackRows:
    """The wrapped blocks of one stack, in the order of wrapping, and the rows that adapters add before them.

    Args:
        stack: The stack.

    Attributes:
        blocks: Names of the blocks.
        modules: Of every block, its modules by adapter name.
        page_bytes: What the rows of one token take at most.
        budget: Bytes for rows that were computed before, at least `page_bytes`; None keeps none.
        cache: Those rows.
    """

    def __init__(self, stack: nn.Module) -> None:
        self.stack = stack
        self.blocks: tuple[str, ...] = ()
        self.modules: tuple[nn.ModuleDict, ...] = ()
        self.page_bytes = 0
        self.budget: int | None = None
        self.cache: RowCache | None = None
        self._numbers: dict[tuple[str, object], tuple[object, int, object]] = {}
        self._warned = False

    def __getstate__(self) -> dict[str, object]:
        # copied tensors count their versions anew, so that what was computed from them cannot be told from what was not
        return {**self.__dict__, "cache": None, "_numbers": {}}

    def add(self, block: str, modules: nn.ModuleDict, width: int) -> None:
        """Note one more wrapped block, whose hidden states have `width` numbers."""
        self.page_bytes += width * torch.float64.itemsize
        self.blocks += (block,)
        self.modules += (modules,)

    def modules_of(self, adapter_name: str) -> list[nn.Module]:
        """Return the adapter's modules in the order of wrapping."""
        return [modules[adapter_name] for modules in self.modules if adapter_name in modules]

    def read(self, rows: Tensor, adapter_name: str, tokens: Tensor, embeddings: Tensor) -> None:
        """Write an adapter's rows.

        Args:
            rows: (L, U, D), written to; zero for blocks that the adapter leaves alone.
            adapter_name: The adapter's name.
            tokens: (U,) int64, distinct.
            embeddings: (U, E), theirs.
        """
        cache = self._cache_for(rows, adapter_name)
        if cache is None:
            self._compute(rows, adapter_name, tokens, embeddings)
            return
        self._warn_of_size(cache, len(tokens))
        number = self._number(adapter_name)
        missing = cache.take(number, tokens, rows)
        if len(missing):
            where = missing.to(tokens.device)
            computed = rows.new_empty(rows.shape[0], len(missing), rows.shape[2])
            self._compute(computed, adapter_name, tokens[where], embeddings[where])
            cache.put(number, tokens[where], computed)
            rows[:, missing] = computed

    def _compute(self, rows: Tensor, adapter_name: str, tokens: Tensor, embeddings: Tensor) -> None:
        inputs: Tensor | None = None
        for slot, modules in enumerate(self.modules):
            if adapter_name not in modules or isinstance(modules[adapter_name], HiddenBottleneck):
                rows[slot].zero_()
                continue
            module = modules[adapter_name]
            if isinstance(module, FCRows):  # all blocks are fed the same
                inputs = module.prepare(embeddings) if inputs is None else inputs
                rows[slot].copy_(module(tokens, inputs, prepared=True))
            else:
                rows[slot].copy_(module(tokens, embeddings))

    def _cache_for(self, rows: Tensor, adapter_name: str) -> RowCache | None:
        """Return the cache that `rows` may be read from and kept in, or None: on an accelerator copying costs more."""
        if self.budget is None or rows.device.type != "cpu":
            return None
        if any(module.training for module in self.modules_of(adapter_name)):
            return None  # dropout
        layers, _, width = rows.shape
        if layers * width * rows.element_size() > self.budget:  # more blocks were wrapped since
            return None
        cache = self.cache
        if cache is None or not cache.holds(layers, width, rows.dtype):
            cache = self.cache = RowCache(self.budget, layers, width, rows.dtype)
        return cache

    def _number(self, adapter_name: str) -> int:
        """Return a number for what an adapter's rows follow from; another one once any of that has changed."""
        embedding = input_embedding(self.stack)
        weights = [] if embedding is None else [embedding.weight]
        factors = list(factors_of(self.modules_of(adapter_name)))
        made_of = (versions([*weights, *factors]), factors[0].dtype if factors else None)
        precision = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else None
        known = self._numbers.get((adapter_name, precision))
        if known is None or known[0] != made_of:
            # with the tensors themselves, so that no others can take over their identity
            known = self._numbers[adapter_name, precision] = made_of, next(_NUMBERS), (weights, factors)
        return known[1]

    def forget(self, adapter_name: str) -> None:
        """Do not use what was computed for an adapter any more."""
        self._numbers = {key: known for key, known in self._numbers.items() if key[0] != adapter_name}

    def _warn_of_size(self, cache: RowCache, tokens: int) -> None:
        if tokens > cache.pages and not self._warned:
            self._warned = True
            warnings.warn(
                f"expected a row cache that holds the {tokens} distinct tokens of a batch, got room for {cache.pages}; "
                f"most rows are computed anew in every batch, give cache_rows() more bytes",
                stacklevel=2,
            )


def factors_of(modules: Iterable[nn.Module]) -> Iterator[nn.Parameter]:
    """Yield the factors of modules that compute rows; all stand in the module itself, and `parameters()` is slow."""
    return (p for module in modules for p in module._parameters.values() if p is not None)


def versions(parameters: Iterable[Tensor]) -> tuple[int, ...]:
    """Return a fingerprint of parameters that changes with every change but those through `.data`."""
    # tensors made under inference_mode count no versions
    return tuple(n for p in parameters for n in (id(p), -1 if p.is_inference() else p._version))

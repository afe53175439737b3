"""Rows that were computed or read before, in memory of a fixed size for all tasks together.

A page holds one token's rows for all blocks of a stack. Which page is given up for a new one is decided by CLOCK
(Corbató 1968): the hand passes over pages, spares each that was used since it last came by, and takes the first that
was not.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable, Iterable, Sequence

import torch
from torch import Tensor

Key = tuple[Hashable, int]
"""A task and a token."""


class RowCache:
    """A cache of rows on the CPU; safe to use from several threads.

    Args:
        budget: Bytes that the pages may take, at least one page's.
        layers: L, the blocks of a page.
        width: D.
        dtype: Number format of the rows, which is that of what is put in and taken out.

    Attributes:
        pages: How many pages there are room for.
        hits: Rows found so far.
        misses: Rows asked for and not found.

    Raises:
        ValueError: The budget does not hold one page.
    """

    def __init__(self, budget: int, layers: int, width: int, dtype: torch.dtype) -> None:
        page_bytes = layers * width * dtype.itemsize
        self.pages = budget // page_bytes
        if not self.pages:
            raise ValueError(
                f"expected a budget of at least one page of {page_bytes} bytes ({layers} rows of {width} numbers), got "
                f"{budget}; give more, or do without a cache"
            )
        with torch.inference_mode(False):  # else it could not be written to outside inference mode
            self._rows = torch.empty(
                self.pages, layers, width, dtype=dtype, device="cpu"
            )  # the system gives memory as it is used
        self._page_of: dict[Key, int] = {}
        self._key_of: list[Key] = []
        self._used = bytearray(self.pages)
        self._hand = 0
        self._lock = threading.Lock()
        self.hits = 0
        self.misses = 0

    def holds(self, layers: int, width: int, dtype: torch.dtype) -> bool:
        """Whether its pages are of this shape and number format."""
        return self._rows.shape[1:] == (layers, width) and self._rows.dtype == dtype

    def take(self, keys: Sequence[Key], places: Sequence[int], rows: Tensor) -> list[int]:
        """Copy what is there.

        Args:
            keys: Whose rows, and of which token; tasks are compared by equality.
            places: For each key a column of `rows`.
            rows: (L, S, D); columns of keys that are found are written, others stay as they are.

        Returns:
            Numbers of the keys that were not found, ascending.
        """
        with self._lock:
            pages = [self._page_of.get(key, -1) for key in keys]
            found = [page for page in pages if page >= 0]
            for page in found:
                self._used[page] = 1
            self.hits += len(found)
            self.misses += len(pages) - len(found)
            if found:  # copied under the lock, so that no page changes hands meanwhile
                columns = [place for place, page in zip(places, pages, strict=True) if page >= 0]
                rows.index_copy_(1, _indices(columns), self._rows.index_select(0, _indices(found)).transpose(0, 1))
        return [number for number, page in enumerate(pages) if page < 0]

    def put(self, keys: Sequence[Key], rows: Tensor) -> None:
        """Keep rows, as many as there is room for.

        Args:
            keys: Whose rows, and of which token; distinct.
            rows: (L, U, D), theirs.
        """
        with self._lock:
            # a page may have been given up again within this very call: the last to get it has it
            try:
                place_of = {self._page_for(key): place for place, key in enumerate(keys[: self.pages])}
                if place_of:
                    values = rows.index_select(1, _indices(place_of.values())).transpose(0, 1)
                    self._rows.index_copy_(0, _indices(place_of), values)
            except BaseException:  # Ctrl-C, no memory: pages have owners whose rows are not in them
                self._clear()
                raise

    def _clear(self) -> None:
        self._page_of, self._key_of, self._used, self._hand = {}, [], bytearray(self.pages), 0

    def _page_for(self, key: Key) -> int:
        page = self._page_of.get(key)
        if page is None:
            page = len(self._key_of)
            if page < self.pages:
                self._key_of.append(key)
            else:
                page = self._free_page()
                self._key_of[page] = key
            self._page_of[key] = page
        self._used[page] = 1
        return page

    def _free_page(self) -> int:
        while self._used[self._hand]:
            self._used[self._hand] = 0
            self._hand = (self._hand + 1) % self.pages
        page = self._hand
        self._hand = (self._hand + 1) % self.pages
        del self._page_of[self._key_of[page]]
        return page

    def __len__(self) -> int:
        return len(self._page_of)


def _indices(numbers: Iterable[int]) -> Tensor:
    return torch.tensor(list(numbers), dtype=torch.int64, device="cpu")  # whatever the default device is

"""Naive references: one token, one layer, one example at a time. Imports torch only."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def fc_row(embedding: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
    """One row of the FC reparametrization with GELU, written out in sums."""
    rank, width = w1.shape[1], w2.shape[1]
    hidden = []
    for r in range(rank):
        x = sum((embedding[e] * w1[e, r] for e in range(len(embedding))), b1[r])
        hidden.append(0.5 * x * (1 + torch.erf(x / math.sqrt(2))))
    return torch.stack([sum((hidden[r] * w2[r, d] for r in range(rank)), b2[d]) for d in range(width)])


def kronecker_table(w_l: Tensor, w_m: Tensor, w_r: Tensor) -> Tensor:
    """The whole table of the Kronecker reparametrization, with the product formed."""
    return torch.kron(w_l, w_m) @ w_r


def add_rows(hidden: Tensor, token_ids: Tensor, tables: list[Tensor | None]) -> Tensor:
    """H' = H + P[x], position by position; example i uses `tables[i]`, None is no adapter."""
    out = hidden.clone()
    for b in range(hidden.shape[0]):
        table = tables[b]
        if table is None:
            continue
        for t in range(hidden.shape[1]):
            out[b, t] = hidden[b, t] + table[token_ids[b, t]]
    return out


class Clock:
    """CLOCK, one key at a time: pages in a ring, a bit for each, a hand."""

    def __init__(self, pages: int) -> None:
        self.pages = pages
        self.keys: list[tuple[int, int]] = []
        self.used: list[bool] = []
        self.hand = 0

    def take(self, wanted: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """Mark what is there as used; return what is not."""
        for key in wanted:
            if key in self.keys:
                self.used[self.keys.index(key)] = True
        return [key for key in wanted if key not in self.keys]

    def put(self, new: list[tuple[int, int]]) -> None:
        """Give each key a page."""
        for key in new:
            if len(self.keys) < self.pages:
                self.keys.append(key)
                self.used.append(True)
                continue
            while self.used[self.hand]:
                self.used[self.hand] = False
                self.hand = (self.hand + 1) % self.pages
            self.keys[self.hand], self.used[self.hand] = key, True
            self.hand = (self.hand + 1) % self.pages

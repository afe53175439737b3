"""The two reparametrizations of a table, as modules: small factors in, rows of the table out.

A module holds the factors of one adapter in one block and computes the rows of given tokens. It does not know batches,
blocks or files.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_aot.ops import ACTIVATIONS, fc_rows, kronecker_rows, square_factors, unit_rows

from .config import AoTConfig


class FCRows(nn.Module):
    """Rows by the FC reparametrization, `P = f(E W1 + b1) W2 + b2` (equation 3).

    W1 starts random with variance 1/E, the rest at zero, so that P = 0 at the start. Dropout acts on the embedding, one
    mask per distinct token of the batch.

    Args:
        config: The adapter's configuration.
        embedding_dim: E.
        width: D.
    """

    def __init__(self, config: AoTConfig, embedding_dim: int, width: int) -> None:
        super().__init__()
        self.activation = config.activation
        self.dropout = config.dropout
        self.normalize = config.normalize_embeddings
        self.w1 = nn.Parameter(torch.empty(embedding_dim, config.r))
        self.b1 = nn.Parameter(torch.zeros(config.r))
        self.w2 = nn.Parameter(torch.zeros(config.r, width))
        self.b2 = nn.Parameter(torch.zeros(width))
        nn.init.normal_(self.w1, std=embedding_dim**-0.5)
        if not config.init_weights:
            nn.init.normal_(self.w2, std=config.r**-0.5)
            nn.init.normal_(self.b2, std=0.1)

    def forward(self, token_ids: Tensor, embeddings: Tensor) -> Tensor:
        """Compute the rows (U, D) of tokens (U,) whose input embeddings are (U, E)."""
        x = embeddings.to(device=self.w1.device, dtype=self.w1.dtype)
        if self.normalize:
            x = unit_rows(x)
        x = F.dropout(x, self.dropout, self.training)
        return fc_rows(x, self.w1, self.b1, self.w2, self.b2, ACTIVATIONS[self.activation])


class KroneckerRows(nn.Module):
    """Rows by the Kronecker reparametrization, `P = (W_L (x) W_M) W_R` (equation 2).

    W_L and W_M start random with variance 1/R, W_R at zero, so that P = 0 at the start. Dropout acts on the row.

    Args:
        config: The adapter's configuration; its `vocab_size` is set.
        width: D.
    """

    def __init__(self, config: AoTConfig, width: int) -> None:
        super().__init__()
        if config.vocab_size is None:
            raise ValueError("expected a config with vocab_size, got None; inject the adapter into a backbone first")
        a, b = config.kron_shape or square_factors(config.vocab_size)
        self.dropout = config.dropout
        self.w_l = nn.Parameter(torch.empty(a, config.r))
        self.w_m = nn.Parameter(torch.empty(b, config.r))
        self.w_r = nn.Parameter(torch.zeros(config.r**2, width))
        nn.init.normal_(self.w_l, std=config.r**-0.5)
        nn.init.normal_(self.w_m, std=config.r**-0.5)
        if not config.init_weights:
            nn.init.normal_(self.w_r)

    def forward(self, token_ids: Tensor, embeddings: Tensor) -> Tensor:
        """Compute the rows (U, D) of tokens (U,); embeddings are not used."""
        rows = kronecker_rows(token_ids.to(self.w_l.device), self.w_l, self.w_m, self.w_r)
        return F.dropout(rows, self.dropout, self.training)


RowsModule = FCRows | KroneckerRows


def make_rows(config: AoTConfig, embedding_dim: int, width: int) -> RowsModule:
    """Build the module that `config.reparam` names."""
    return FCRows(config, embedding_dim, width) if config.reparam == "fc" else KroneckerRows(config, width)


def set_combination(target: RowsModule, parts: Sequence[RowsModule], weights: Sequence[float]) -> None:
    """Turn `target` into the weighted sum of the tables of `parts`, exactly; its rank is the sum of theirs."""
    fc = [part for part in parts if isinstance(part, FCRows)]
    kron = [part for part in parts if isinstance(part, KroneckerRows)]
    with torch.no_grad():
        if isinstance(target, FCRows) and len(fc) == len(parts):
            _join_fc(target, fc, weights)
        elif isinstance(target, KroneckerRows) and len(kron) == len(parts):
            _join_kronecker(target, kron, weights)
        else:
            raise TypeError(
                "expected rows of one reparametrization, got both; combine adapters that were trained alike"
            )


def _join_fc(target: FCRows, parts: Sequence[FCRows], weights: Sequence[float]) -> None:
    # hidden units side by side
    target.w1.copy_(torch.cat([p.w1 for p in parts], dim=1))
    target.b1.copy_(torch.cat([p.b1 for p in parts]))
    target.w2.copy_(torch.cat([p.w2 * w for p, w in zip(parts, weights, strict=True)]))
    target.b2.copy_(torch.stack([p.b2 * w for p, w in zip(parts, weights, strict=True)]).sum(0))


def _join_kronecker(target: KroneckerRows, parts: Sequence[KroneckerRows], weights: Sequence[float]) -> None:
    # block-diagonal in the R x R grid of products, so that no factor of one part meets a factor of another
    target.w_l.copy_(torch.cat([p.w_l for p in parts], dim=1))
    target.w_m.copy_(torch.cat([p.w_m for p in parts], dim=1))
    rank, width = target.w_l.shape[1], target.w_r.shape[1]
    grid = target.w_r.zero_().view(rank, rank, width)
    start = 0
    for part, weight in zip(parts, weights, strict=True):
        size = part.w_l.shape[1]
        grid[start : start + size, start : start + size] = part.w_r.view(size, size, width) * weight
        start += size

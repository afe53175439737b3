"""The reparametrizations of a table, as modules: small factors in, rows of the table out.

A module holds the factors of one adapter in one block and computes the rows of given tokens. It does not know batches,
blocks or files. `FCRows` and `KroneckerRows` are the paper's. `RandomRows`, `ConstantRows` and `HiddenBottleneck`, the
last of which has no rows, are controls: each takes one part of the idea away (docs/method.md).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from peft_aot.ops import ACTIVATIONS, fc_rows, kronecker_rows, square_factors, unit_rows

from .config import AoTConfig

RANDOM_SEED = 2305_10835  # saved adapters depend on it


class Bottleneck(nn.Module):
    """`s f(x W1 + b1) W2 + b2` with s = alpha / R; what x is, the subclasses say.

    x has unit length and W1 starts random with variance 1, the rest at zero, so that hidden units start with unit
    variance and the result with 0. Scaled so, W1, W2 and the biases learn at one rate (docs/method.md). Dropout acts
    on x.

    Args:
        config: The adapter's configuration.
        embedding_dim: E, the size of x.
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
        self.scale = config.scale
        nn.init.normal_(self.w1)
        if not config.init_weights:
            nn.init.normal_(self.w2, std=config.r**-0.5 / self.scale)
            nn.init.normal_(self.b2, std=0.1)

    def prepare(self, inputs: Tensor) -> Tensor:
        """Turn inputs (..., E) into x: what does not depend on the factors, and so is the same for all blocks."""
        x = inputs.to(dtype=self.w1.dtype)
        return unit_rows(x) if self.normalize else x

    def bottleneck(self, x: Tensor) -> Tensor:
        """Compute (..., D) from x (..., E)."""
        x = F.dropout(x.to(self.w1.device), self.dropout, self.training)
        return fc_rows(x, self.w1, self.b1, self.scale * self.w2, self.b2, ACTIVATIONS[self.activation])


class FCRows(Bottleneck):
    """Rows by the FC reparametrization, `P = s f(E W1 + b1) W2 + b2` (equation 3).

    Dropout acts on the embedding, one mask per distinct token of the batch.
    """

    def forward(self, token_ids: Tensor, embeddings: Tensor, prepared: bool = False) -> Tensor:
        """Compute the rows (U, D) of tokens (U,) whose input embeddings are (U, E), as they are or as x."""
        return self.bottleneck(embeddings if prepared else self.prepare(embeddings))


class RandomRows(Bottleneck):
    """The FC reparametrization with frozen random vectors in place of the embeddings E: a control.

    Args:
        config: The adapter's configuration; its `vocab_size` is set.
        embedding_dim: E.
        width: D.
    """

    def __init__(self, config: AoTConfig, embedding_dim: int, width: int) -> None:
        super().__init__(config, embedding_dim, width)
        self.vocab_size = _known_vocabulary(config)

    def forward(self, token_ids: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """Compute the rows (U, D) of tokens (U,); embeddings are not used."""
        table = random_embeddings(self.vocab_size, self.w1.shape[0], self.w1.device)
        return self.bottleneck(self.prepare(table[token_ids.to(table.device)]))


class HiddenBottleneck(Bottleneck):
    """The bottleneck of FC fed by the hidden state instead of embeddings: a control that is no lookup (`hidden`).

    E is D here. Dropout acts on the hidden state, one mask per position.
    """

    def forward(self, hidden: Tensor) -> Tensor:
        """Compute from hidden states (..., D) what is added to them, (..., D)."""
        return self.bottleneck(self.prepare(hidden))


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]  # dynamo would trace the generator
def random_embeddings(vocab_size: int, size: int, device: torch.device) -> Tensor:
    """Return the frozen table (V, E), standard normal, that stands in for embeddings; the same one every time.

    No adapter stores it: it is drawn on the CPU from a fixed seed, the same for all adapters and blocks. One copy per
    (V, E) and device is kept for as long as the process lives, V * E * 4 bytes each.
    """
    return _drawn(vocab_size, size, device)


@functools.cache
def _drawn(vocab_size: int, size: int, device: torch.device) -> Tensor:
    # whoever asks first may be under `inference_mode`, or a default device or dtype of their own
    with torch.inference_mode(False):
        generator = torch.Generator(device="cpu").manual_seed(RANDOM_SEED)
        drawn = torch.randn(vocab_size, size, generator=generator, device="cpu", dtype=torch.float32)
        return drawn.to(device)


class ConstantRows(nn.Module):
    """The same row for every token, `P[v] = b2`: a control. b2 starts at zero.

    Args:
        config: The adapter's configuration.
        width: D.
    """

    def __init__(self, config: AoTConfig, width: int) -> None:
        super().__init__()
        self.b2 = nn.Parameter(torch.zeros(width))
        if not config.init_weights:
            nn.init.normal_(self.b2, std=0.1)

    def forward(self, token_ids: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """Compute the rows (U, D) of tokens (U,), of which only the number matters."""
        return self.b2.expand(len(token_ids), -1)


class KroneckerRows(nn.Module):
    """Rows by the Kronecker reparametrization, `P = s (W_L (x) W_M) W_R` with s = alpha / R (equation 2).

    W_L and W_M start normal with mean and standard deviation 1 / sqrt(2 R), so that the R * R products of a token have
    unit length on average, and a quarter of that is the same for all tokens, without which nothing could be learned for
    all of them at once; W_R starts at zero, so that P = 0 at the start. Dropout acts on the row.

    Args:
        config: The adapter's configuration; its `vocab_size` is set.
        width: D.
    """

    def __init__(self, config: AoTConfig, width: int) -> None:
        super().__init__()
        a, b = config.kron_shape or square_factors(_known_vocabulary(config))
        self.dropout = config.dropout
        self.scale = config.scale
        self.w_l = nn.Parameter(torch.empty(a, config.r))
        self.w_m = nn.Parameter(torch.empty(b, config.r))
        self.w_r = nn.Parameter(torch.zeros(config.r**2, width))
        spread = (2 * config.r) ** -0.5
        nn.init.normal_(self.w_l, mean=spread, std=spread)
        nn.init.normal_(self.w_m, mean=spread, std=spread)
        if not config.init_weights:
            nn.init.normal_(self.w_r, std=1 / self.scale)

    def forward(self, token_ids: Tensor, embeddings: Tensor | None = None) -> Tensor:
        """Compute the rows (U, D) of tokens (U,); embeddings are not used."""
        # scaled where it is smallest
        rows = kronecker_rows(token_ids.to(self.w_l.device), self.scale * self.w_l, self.w_m, self.w_r)
        return F.dropout(rows, self.dropout, self.training)


def _known_vocabulary(config: AoTConfig) -> int:
    if config.vocab_size is None:
        raise ValueError("expected a config with vocab_size, got None; inject the adapter into a backbone first")
    return config.vocab_size


RowsModule = FCRows | RandomRows | KroneckerRows | ConstantRows


def make_rows(config: AoTConfig, embedding_dim: int, width: int) -> RowsModule | HiddenBottleneck:
    """Build the module that `config.reparam` and `config.bottleneck_input` name."""
    if config.reparam == "kron":
        return KroneckerRows(config, width)
    if config.reparam == "constant":
        return ConstantRows(config, width)
    if config.bottleneck_input == "hidden":
        return HiddenBottleneck(config, width, width)
    rows = RandomRows if config.bottleneck_input == "random" else FCRows
    return rows(config, embedding_dim, width)


def rows_from(config: AoTConfig, embedding_dim: int, width: int, factors: Mapping[str, Tensor]) -> RowsModule:
    """Build the module of given factors, by name; they are not copied, nothing wants a gradient."""
    with torch.device("meta"):  # drawing initial values would disturb the random state of a training run
        module = make_rows(config, embedding_dim, width)
    if isinstance(module, HiddenBottleneck):
        raise TypeError("expected a lookup, got bottleneck_input='hidden', which is none; use the adapter unfused")
    module.load_state_dict(dict(factors), assign=True)
    return module.eval().requires_grad_(False)


def set_combination(target: nn.Module, parts: Sequence[nn.Module], weights: Sequence[float]) -> None:
    """Turn `target` into the weighted sum of `parts`, exactly; its rank is the sum of theirs."""
    kinds = {type(module) for module in (target, *parts)}
    if len(kinds) > 1 or not isinstance(target, (Bottleneck, KroneckerRows, ConstantRows)):
        raise TypeError(
            f"expected rows of one reparametrization, got {sorted(kind.__name__ for kind in kinds)}; combine adapters "
            f"that were trained alike"
        )
    with torch.no_grad():
        if isinstance(target, Bottleneck):
            _join_fc(target, [part for part in parts if isinstance(part, Bottleneck)], weights)
        elif isinstance(target, KroneckerRows):
            _join_kronecker(target, [part for part in parts if isinstance(part, KroneckerRows)], weights)
        else:
            _join_constant(target, [part for part in parts if isinstance(part, ConstantRows)], weights)


def _join_fc(target: Bottleneck, parts: Sequence[Bottleneck], weights: Sequence[float]) -> None:
    # hidden units side by side
    target.w1.copy_(torch.cat([p.w1 for p in parts], dim=1))
    target.b1.copy_(torch.cat([p.b1 for p in parts]))
    scales = [w * p.scale / target.scale for p, w in zip(parts, weights, strict=True)]
    target.w2.copy_(torch.cat([p.w2 * scale for p, scale in zip(parts, scales, strict=True)]))
    target.b2.copy_(torch.stack([p.b2 * w for p, w in zip(parts, weights, strict=True)]).sum(0))


def _join_constant(target: ConstantRows, parts: Sequence[ConstantRows], weights: Sequence[float]) -> None:
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
        grid[start : start + size, start : start + size] = part.w_r.view(size, size, width) * (
            weight * part.scale / target.scale
        )
        start += size

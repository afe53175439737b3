"""Pure tensor arithmetic of AoT P-Tuning: rows of a table, and where in a batch they go.

`H'_l = H_l + P_l[x]` (arXiv 2305.10835, section 3). Nothing here knows a model, an adapter name or a file.

Letters: B batch, T tokens, D hidden size, E embedding size, V vocabulary, R rank, G groups, U distinct (group, token)
pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "gelu": F.gelu,
    "relu": F.relu,
    "silu": F.silu,
    "tanh": torch.tanh,
    "identity": lambda x: x,
}


def unit_rows(embeddings: Tensor, eps: float = 1e-12) -> Tensor:
    """Scale every row of (U, E) to unit length; a zero row stays zero.

    Embeddings of pretrained models differ in length from model to model and token to token; W1 sees their direction.
    The paper does not say; this scaling is our choice (docs/method.md).
    """
    x = embeddings.to(torch.promote_types(embeddings.dtype, torch.float32))  # squares of float16 underflow
    return (x * torch.rsqrt(x.square().sum(dim=-1, keepdim=True) + eps)).to(embeddings.dtype)


def fc_rows(
    embeddings: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """Compute rows of the FC reparametrization, `P = f(E W1 + b1) W2 + b2` (equation 3).

    Shapes: embeddings (U, E), w1 (E, R), b1 (R,), w2 (R, D), b2 (D,); returns (U, D).
    """
    return activation(embeddings @ w1 + b1) @ w2 + b2


def kronecker_rows(token_ids: Tensor, w_l: Tensor, w_m: Tensor, w_r: Tensor) -> Tensor:
    """Compute rows of the Kronecker reparametrization, `P = (W_L (x) W_M) W_R` (equation 2).

    Row v = i * b + j is `outer(W_L[i], W_M[j]).flatten() @ W_R`; the product of the two factors is never formed.
    Shapes: token_ids (U,) int64, w_l (a, R), w_m (b, R), w_r (R * R, D); returns (U, D).
    """
    left = w_l[token_ids // w_m.shape[0]]
    right = w_m[token_ids % w_m.shape[0]]
    return (left.unsqueeze(2) * right.unsqueeze(1)).flatten(1) @ w_r


def stacked_fc_rows(
    embeddings: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor, activation: Callable[[Tensor], Tensor]
) -> Tensor:
    """Compute `fc_rows` of L blocks at once: two matrix products instead of 2 L.

    Shapes: embeddings (U, E), w1 (L * R, E), block by block and transposed, which makes the product of a few tokens
    faster, b1 (L, R), w2 (L, R, D), b2 (L, D); returns (L, U, D).
    """
    units = activation(torch.addmm(b1.view(-1, 1), w1, embeddings.t())).view(*b1.shape, len(embeddings))
    return torch.baddbmm(b2.unsqueeze(1), units.transpose(1, 2), w2)


def stacked_kronecker_rows(token_ids: Tensor, w_l: Tensor, w_m: Tensor, w_r: Tensor) -> Tensor:
    """Compute `kronecker_rows` of L blocks at once.

    Shapes: token_ids (U,) int64, w_l (L, a, R), w_m (L, b, R), w_r (L, R * R, D); returns (L, U, D).
    """
    left = w_l[:, token_ids // w_m.shape[1]]
    right = w_m[:, token_ids % w_m.shape[1]]
    return torch.bmm((left.unsqueeze(3) * right.unsqueeze(2)).flatten(2), w_r)


def square_factors(vocab_size: int) -> tuple[int, int]:
    """Return (a, b), a >= b, the most square pair with a * b >= vocab_size."""
    b = int(vocab_size**0.5)
    while b * b < vocab_size:
        b += 1
    a = b
    b = -(-vocab_size // a)
    return a, b


@dataclass(frozen=True)
class Placement:
    """Which rows a batch needs, and where each goes.

    Attributes:
        tokens: For each group, the token ids (U_g,) whose rows are needed.
        positions: (B, T) int64 into the concatenation of all groups' rows followed by one zero row.
        zero_row: True if some example belongs to no group and so points at the zero row.
    """

    tokens: tuple[Tensor, ...]
    positions: Tensor
    zero_row: bool


def place_distinct(token_ids: Tensor, groups: Sequence[int], num_groups: int) -> Placement:
    """Find the distinct (group, token) pairs of a batch.

    Args:
        token_ids: (B, T) int64.
        groups: For each example its group in [0, num_groups), or -1 for none.
        num_groups: G.

    Returns:
        The placement in which every pair appears once; exact, since a row depends on nothing else.
    """
    if num_groups == 1 and -1 not in groups:
        tokens, positions = torch.unique(token_ids, return_inverse=True)
        return Placement((tokens,), positions, zero_row=False)
    span = int(token_ids.max()) + 1 if token_ids.numel() else 1
    # An example without a group sorts behind all others and collapses to a single pair.
    group_of = torch.tensor([g if g >= 0 else num_groups for g in groups], device=token_ids.device).unsqueeze(1)
    keys = torch.where(group_of < num_groups, group_of * span + token_ids, num_groups * span)
    pairs, positions = torch.unique(keys, return_inverse=True)
    edges = torch.arange(num_groups + 1, device=token_ids.device) * span
    bounds = torch.searchsorted(pairs, edges).tolist()
    tokens_of = tuple(pairs[bounds[g] : bounds[g + 1]] - g * span for g in range(num_groups))
    return Placement(tokens_of, positions, zero_row=-1 in groups)


def place_every(token_ids: Tensor, groups: Sequence[int], num_groups: int) -> Placement:
    """Place one row per occurrence: the same result as `place_distinct` with shapes that do not depend on the data.

    For compiled graphs, where the number of distinct tokens would force a graph break.
    """
    batch, length = token_ids.shape
    starts: dict[int, int] = {}
    tokens = []
    offset = 0
    for group in range(num_groups):
        members = [i for i, g in enumerate(groups) if g == group]
        tokens.append(token_ids[members].flatten() if len(members) < batch else token_ids.flatten())
        for i in members:
            starts[i] = offset
            offset += length
    column = torch.arange(length, device=token_ids.device)
    rows = [column + starts[i] if groups[i] >= 0 else torch.full_like(column, offset) for i in range(batch)]
    return Placement(tuple(tokens), torch.stack(rows), zero_row=-1 in groups)


def add_rows(hidden: Tensor, rows: Sequence[Tensor], placement: Placement) -> Tensor:
    """Add to (B, T, D) hidden states the rows that `placement` assigns to each position.

    Args:
        hidden: (B, T, D), any floating type; the result keeps it.
        rows: For each group (U_g, D), in the order of `placement.tokens`.
        placement: From `place_distinct` or `place_every`.
    """
    parts = [part.to(device=hidden.device, dtype=hidden.dtype) for part in rows]
    if placement.zero_row:
        parts.append(hidden.new_zeros(1, hidden.shape[-1]))
    stacked = parts[0] if len(parts) == 1 else torch.cat(parts)
    return add_staged(hidden, stacked, placement.positions.to(hidden.device))


def add_staged(hidden: Tensor, rows: Tensor, positions: Tensor) -> Tensor:
    """Add to (B, T, D) hidden states the row that each position points to.

    Args:
        hidden: (B, T, D).
        rows: (U, D) of the same dtype and device.
        positions: (B, T) int64 in [0, U), on the same device.
    """
    return torch.embedding(rows, positions).add_(hidden)


def add_quantized(hidden: Tensor, rows: Tensor, scales: Tensor, positions: Tensor) -> Tensor:
    """Add to (B, T, D) hidden states the int8 row that each position points to, times its scale, in one addition.

    Args:
        hidden: (B, T, D).
        rows: (S, D) int8.
        scales: (S, 1), any floating type.
        positions: (B, T) int64 in [0, S).
    """
    found = F.embedding(positions, rows).to(hidden.dtype)
    return torch.addcmul(hidden, found, F.embedding(positions, scales).to(hidden.dtype))

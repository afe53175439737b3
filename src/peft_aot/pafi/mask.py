"""The task-agnostic mask of PaFi: which entries of a backbone are the smallest in magnitude.

`m_i = 1 iff |theta_i| <= (k-th smallest |theta|)` (arXiv 2305.16742), chosen without any data: the same backbone gives
the same mask wherever it is computed. Ties are broken by position, so that exactly k entries are chosen. This file does
not know models: which weights take part, and in which order, is for the caller to say.

The bits of a float without its sign grow with its magnitude, as an integer does. The k-th smallest is therefore found
exactly, 16 bits at a time, by counting digits in chunks: no sorting, and never a second copy of the weights.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor

from peft_aot.suggestions import did_you_mean

SCOPES = ("global", "per_tensor")
DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
CHUNK = 1 << 18  # entries at a time; more is no faster, and leaves the heap fragmented
DIGIT = 16
INFINITY = {torch.float32: 0x7F80_0000, torch.float64: 0x7FF0_0000_0000_0000}


def smallest_entries(weights: Mapping[str, Tensor], sparsity: float, scope: str) -> dict[str, Tensor]:
    """Choose the entries of smallest magnitude.

    Args:
        weights: The weights by name, of any shapes; their order decides ties: earlier first, then lower flat index.
        sparsity: The share to choose, in (0, 1].
        scope: "global" for `int(sparsity * N)` of all N entries, "per_tensor" for that many of each tensor.

    Returns:
        For each name the flat (row-major) indices of its chosen entries, int64 and ascending, on the weight's device;
        a name without any is absent.

    Raises:
        ValueError: A sparsity or scope that is none; weights that are quantized, offloaded or tied to each other, or
            with NaN among the chosen; nothing to choose.
    """
    check_selection(sparsity, scope)
    for name, weight in weights.items():
        _check_weight(name, weight)
    _check_untied(weights)
    groups = [weights] if scope == "global" else [{name: weight} for name, weight in weights.items()]
    chosen: dict[str, Tensor] = {}
    for group in groups:
        chosen.update(_smallest(group, int(sparsity * sum(weight.numel() for weight in group.values()))))
    if not chosen:
        total = sum(weight.numel() for weight in weights.values())
        raise ValueError(
            f"expected at least one entry to train, got sparsity={sparsity} of {total} entries with scope='{scope}': "
            f"the mask would be empty; raise sparsity or target more modules"
        )
    return chosen


def fingerprint(names: Sequence[str], shapes: Sequence[Sequence[int]], indices: Sequence[Tensor]) -> str:
    """Hash a mask to 16 hexadecimal digits that change with every name, shape and index, and with their order.

    Adapters on disk hold this in place of the mask: a change here makes all of them unreadable.
    """
    digest = hashlib.sha256()
    for name, shape, chosen in zip(names, shapes, indices, strict=True):
        # lengths first, so that no two masks are written as the same bytes
        digest.update(f"{len(name.encode())} {name} {[int(size) for size in shape]} {chosen.numel()} ".encode())
        digest.update(chosen.cpu().numpy().astype("<i8").tobytes())
    return digest.hexdigest()[:16]


def check_selection(sparsity: object, scope: object) -> None:
    """Refuse a `sparsity` or `scope` that is none.

    Raises:
        ValueError: Not a number in (0, 1], or an unknown scope.
    """
    number = isinstance(sparsity, (int, float)) and not isinstance(sparsity, bool)
    if not number or not 0.0 < sparsity <= 1.0:  # type: ignore[operator]
        raise ValueError(f"expected sparsity in (0, 1], got {sparsity!r}; 0.005 trains 0.5 % of the weights")
    if scope not in SCOPES:
        raise ValueError(f"expected a known scope, got {scope!r}; {did_you_mean(str(scope), SCOPES)}")


def _check_weight(name: str, weight: Tensor) -> None:
    if weight.dtype not in DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in DTYPES)
        raise ValueError(
            f"expected floating-point weights ({known}), got {weight.dtype} in {name}; load the backbone without "
            f"quantization, or leave this weight out with exclude_modules"
        )
    if weight.is_meta:
        raise ValueError(
            f"expected weights in memory, got {name} on device 'meta' (offloaded, or not loaded yet); load the "
            f"backbone on devices that hold all of it"
        )


def _check_untied(weights: Mapping[str, Tensor]) -> None:
    spans = []
    for name, weight in weights.items():
        if weight.numel():
            extent = 1 + sum((size - 1) * step for size, step in zip(weight.shape, weight.stride(), strict=True))
            start = weight.data_ptr()
            spans.append((str(weight.device), start, start + extent * weight.element_size(), name))
    for (place, _, end, earlier), (other, start, _, later) in pairwise(sorted(spans)):
        if place == other and start < end:
            raise ValueError(
                f"expected weights that share no memory, got {earlier} and {later} on the same data (tied weights); "
                f"leave one of them out with exclude_modules"
            )


def _smallest(weights: Mapping[str, Tensor], count: int) -> dict[str, Tensor]:
    """Choose the `count` smallest entries of all weights together."""
    if not count:
        return {}
    # every other type is exact in float32, which is all that a mixture with float64 needs more of
    dtype = torch.float64 if any(weight.dtype == torch.float64 for weight in weights.values()) else torch.float32
    threshold, ties = _kth_smallest(weights, count, dtype)
    if threshold > INFINITY[dtype]:
        name = next(n for n, w in weights.items() if any(bool((p > INFINITY[dtype]).any()) for p in _bits(w, dtype)))
        raise ValueError(
            f"expected {count} weights that are numbers, got fewer: there is NaN in {name}; load a sound checkpoint"
        )
    chosen = {}
    for name, weight in weights.items():
        parts, start = [], 0
        for bits in _bits(weight, dtype):
            small = (bits <= threshold).nonzero().squeeze(1)
            tied = bits[small] == threshold
            found = int(tied.sum())
            if found > ties:
                small = small[~tied | (tied.cumsum(0) <= ties)]
            ties -= min(found, ties)
            parts.append(small + start)
            start += bits.numel()
        indices = torch.cat(parts)
        if indices.numel():
            chosen[name] = indices
    return chosen


def _kth_smallest(weights: Mapping[str, Tensor], count: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return the bits of the count-th smallest magnitude, and how many entries equal to it are among the smallest."""
    width = torch.finfo(dtype).bits
    prefix = 0
    for shift in range(width - DIGIT, -1, -DIGIT):
        counts = torch.zeros(1 << DIGIT, dtype=torch.int64)
        for weight in weights.values():
            for bits in _bits(weight, dtype):
                if shift + DIGIT < width:
                    bits = bits[bits >> (shift + DIGIT) == prefix]
                digits = bits >> shift & (1 << DIGIT) - 1
                counts += digits.bincount(minlength=1 << DIGIT).cpu()
        up_to = counts.cumsum(0)
        digit = int(torch.searchsorted(up_to, count))
        count -= int(up_to[digit] - counts[digit])
        prefix = prefix << DIGIT | digit
    return prefix, count


def _bits(weight: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield a weight's magnitudes, chunk by chunk in row-major order, as integers of the same order."""
    integer = torch.int64 if dtype == torch.float64 else torch.int32
    for chunk in _chunks(weight.detach()):
        yield chunk.to(dtype).view(integer) & torch.iinfo(integer).max


def _chunks(weight: Tensor) -> Iterator[Tensor]:
    if weight.is_contiguous() or weight.numel() <= CHUNK:
        yield from torch.split(weight.reshape(-1), CHUNK)
    else:  # halve it, since flattening would copy all of it
        for part in weight.chunk(2) if len(weight) > 1 else weight.unbind():
            yield from _chunks(part)

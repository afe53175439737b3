"""Lengths that texts are padded to, so that those of one batch are nearly as long as each other."""

from __future__ import annotations

from bisect import bisect_left

BUCKETS = (8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512)
"""Fine steps where texts are short: what such a batch loses to padding grows with the step."""
STEP = 256


def padded_length(tokens: int) -> int:
    """Return the smallest of `BUCKETS`, and beyond them of the multiples of `STEP`, that holds a text.

    Args:
        tokens: Length of the text in tokens.
    """
    if tokens > BUCKETS[-1]:
        return -(-tokens // STEP) * STEP
    return BUCKETS[bisect_left(BUCKETS, tokens)]


def may_join(padded: int, longest: int) -> bool:
    """Return whether texts of one bucket may fill up a batch of another: no longer, and at least half as long.

    Args:
        padded: Padded length of the texts.
        longest: Padded length of the batch.
    """
    return padded <= longest <= 2 * padded

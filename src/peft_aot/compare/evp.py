"""Expected validation performance: how good the best of n search trials is on average.

Dodge et al. 2019, "Show Your Work: Improved Reporting of Experimental Results" (arXiv 1909.03004), section 3.1. Pure
arithmetic.
"""

from __future__ import annotations

from collections.abc import Sequence


def expected_best(scores: Sequence[float]) -> tuple[float, ...]:
    """Compute the expected maximum of n scores drawn with replacement from `scores`, for n = 1 ... N.

    With the scores sorted, v_1 <= ... <= v_N, the best of n draws is at most v_i with probability (i / N)^n, so that
    `E[max] = sum_i v_i ((i / N)^n - ((i - 1) / N)^n)` (equation 6 of the paper), exactly for the empirical
    distribution of the N scores.

    Args:
        scores: N validation scores, one per trial, in any order.

    Returns:
        N values that never fall: the first is the mean of the scores.
    """
    ordered = sorted(scores)
    size = len(ordered)
    return tuple(
        sum(value * ((i / size) ** n - ((i - 1) / size) ** n) for i, value in enumerate(ordered, start=1))
        for n in range(1, size + 1)
    )

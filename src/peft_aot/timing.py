"""Comparing the speed of several functions within one run.

Times in milliseconds tell more about the machine and its neighbours than about a method, so every candidate is timed
once per round, in a new order each round, and divided by the reference of the *same* round: what slows the machine for
a while slows both. Medians are reported. Knows nothing of models; the standard library is all it needs.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Timing:
    """How long one candidate took.

    Attributes:
        name: The candidate.
        milliseconds: Median time of one call.
        ratio: Median of its time divided by the reference's time of the same round; 1 for the reference.
        ratio_low: First quartile of that ratio.
        ratio_high: Third quartile of that ratio.
        samples: Milliseconds of every round, in order.
    """

    name: str
    milliseconds: float
    ratio: float
    ratio_low: float
    ratio_high: float
    samples: tuple[float, ...]


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    reference: str,
    rounds: int = 30,
    warmup: int = 3,
    seed: int = 0,
    clock: Callable[[], float] = time.perf_counter,
    synchronize: Callable[[], object] | None = None,
) -> dict[str, Timing]:
    """Time every candidate once per round, in an order shuffled anew, and relate it to the reference.

    Args:
        candidates: Functions by name; what they return is thrown away.
        reference: Name of the candidate that the ratios are taken to.
        rounds: Rounds that count; at least 2, for the quartiles.
        warmup: Rounds before them that do not.
        seed: Seed of the orders.
        clock: Seconds since some moment.
        synchronize: Called before each reading of the clock, to wait for an accelerator.

    Returns:
        A timing by name, in the order of `candidates`.

    Raises:
        ValueError: Unknown reference, or too few rounds.
    """
    if reference not in candidates:
        raise ValueError(f"expected reference among {list(candidates)}, got {reference!r}; pass one of them")
    if rounds < 2:
        raise ValueError(f"expected at least 2 rounds, got {rounds}; 30 is a good number")
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    shuffle = random.Random(seed).shuffle
    for turn in range(-warmup, rounds):
        shuffle(order)
        for name in order:
            milliseconds = _time(candidates[name], clock, synchronize)
            if turn >= 0:
                samples[name].append(milliseconds)
    return {name: summarize(name, samples[name], samples[reference]) for name in candidates}


def summarize(name: str, samples: list[float], reference: list[float]) -> Timing:
    """Turn the samples of a candidate and of the reference, round by round in ms, into a timing."""
    ratios = [mine / its for mine, its in zip(samples, reference, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return Timing(name, statistics.median(samples), middle, low, high, tuple(samples))


def _time(
    candidate: Callable[[], object], clock: Callable[[], float], synchronize: Callable[[], object] | None
) -> float:
    if synchronize is not None:
        synchronize()
    start = clock()
    candidate()
    if synchronize is not None:
        synchronize()
    return (clock() - start) * 1000

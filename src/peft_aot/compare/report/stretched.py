"""An axis stretched about one value, for numbers of which many are close to it and some far away.

`x -> asinh((x - centre) / scale)` is linear within about a scale of the centre and logarithmic far from it. Needs
matplotlib to be applied.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Literal

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes


FINEST = 0.3  # least step of ticks at the centre, in scales
COARSENESS = 0.2  # least step of ticks far from the centre, as a share of their distance from it


def stretch(
    axes: Axes,
    which: Literal["x", "y"],
    values: Sequence[float],
    centre: float,
    scale: float,
    margin: float = 0.06,
    gap: float = 0.1,
) -> None:
    """Stretch an axis, set its limits about `values` and give it round ticks.

    Args:
        axes: The axes.
        which: Which of its two axes.
        values: What must be seen.
        centre: Where to stretch most.
        scale: How far from the centre the axis is about linear.
        margin: Free at both ends, as a share of the axis.
        gap: Least distance of two ticks, as a share of the axis.
    """
    low, high = _forward(min(values), centre, scale), _forward(max(values), centre, scale)
    free = margin * (high - low) or margin
    limits = _backward(low - free, centre, scale), _backward(high + free, centre, scale)
    functions = (
        lambda value: np.arcsinh((np.asarray(value) - centre) / scale),
        lambda place: centre + scale * np.sinh(np.asarray(place)),
    )
    ticks = round_ticks(limits[0], limits[1], centre, scale, gap)
    names = [f"{tick:.6g}" for tick in ticks]
    if which == "x":
        axes.set_xscale("function", functions=functions)
        axes.set_xlim(*limits)
        axes.set_xticks(ticks, names)
        axes.set_xticks([], minor=True)
    else:
        axes.set_yscale("function", functions=functions)
        axes.set_ylim(*limits)
        axes.set_yticks(ticks, names)
        axes.set_yticks([], minor=True)


def closeness(scores: Sequence[float]) -> float:
    """Choose the scale for an axis stretched at the best of some scores (%): half the way to the middle one."""
    return max((max(scores) - median(scores)) / 2, 0.5)


def round_ticks(low: float, high: float, centre: float, scale: float, gap: float) -> list[float]:
    """Choose round numbers between two limits, the roundest first, as far apart on the axis as `gap` asks.

    How round they must be depends on how far from the centre they are: 1.02 is as good as 1.5, and 1.52 is not.
    """
    start, end = _forward(low, centre, scale), _forward(high, centre, scale)
    chosen: list[float] = []
    for value, step in _from_roundest(low, high):
        place = _forward(value, centre, scale)
        round_enough = step >= max(FINEST * scale, COARSENESS * abs(value - centre))
        if round_enough and all(abs(place - _forward(other, centre, scale)) >= gap * (end - start) for other in chosen):
            chosen.append(value)
    return sorted(chosen)


def _from_roundest(low: float, high: float) -> Iterator[tuple[float, float]]:
    """Yield the multiples of 1, 5 and 2 times ever smaller powers of ten that lie between two limits, and the step."""
    largest = math.ceil(math.log10(max(abs(low), abs(high), high - low)))
    smallest = math.floor(math.log10(high - low)) - 2
    for power in range(largest, smallest - 1, -1):
        for step in (10.0**power, 5 * 10.0 ** (power - 1), 2 * 10.0 ** (power - 1)):
            for number in range(math.ceil(low / step), math.floor(high / step) + 1):
                yield round(number * step, 9), step


def _forward(value: float, centre: float, scale: float) -> float:
    return math.asinh((value - centre) / scale)


def _backward(place: float, centre: float, scale: float) -> float:
    return centre + scale * math.sinh(place)

"""Labels of points that overlap neither each other nor the points, with a line to the point where they had to move.

Each label chooses among places around its point; then all choose anew, given the others, until none moves. Needs
matplotlib to measure and write them.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from .styles import INK, PAPER, QUIET

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from matplotlib.text import Annotation

Point: TypeAlias = tuple[float, float]
Box: TypeAlias = tuple[float, float, float, float]  # left, bottom, right, top

DISTANCES = (8.0, 12.0, 16.0, 21.0, 28.0, 36.0, 46.0, 58.0, 72.0, 90.0, 112.0, 140.0)  # from point to label, in pt
DIRECTIONS = 24
LEADER_FROM = 10.0  # a label nearer than this, in pt, needs no line
NEAR = 4.0  # a label this near to another's point, in pt, may be taken for that one's
CLEAR = 2.5  # free space around points and bars, in pt
SWEEPS = 20
STARTS = 6

# What a place costs, in the unit of a point of distance.
LABEL_ON_LABEL, LABEL_ON_POINT, OUTSIDE = 900.0, 300.0, 2000.0
LINE_THROUGH_LABEL, LINE_THROUGH_POINT, LINE_ACROSS_LINE = 250.0, 120.0, 90.0
LINE_ALONG_BAR = 90.0  # it would look like a longer bar
LABEL_NEAR_POINT, LEFTWARD = 25.0, 3.0


@dataclass(frozen=True)
class Place:
    """Where a label may stand, in typographic points from the figure's corner.

    Attributes:
        box: What the label covers.
        line: From the point to the box.
        distance: Its length.
        cost: How bad the place is, whatever the other labels do.
    """

    box: Box
    line: tuple[Point, Point]
    distance: float
    cost: float


def arrange(points: Sequence[Point], sizes: Sequence[Point], frame: Box, avoid: Sequence[Box]) -> list[Place]:
    """Find a place for every label.

    Args:
        points: The labelled points.
        sizes: Width and height of their labels.
        frame: Where labels must stay.
        avoid: What labels should not cover: markers, error bars, lines.

    Returns:
        A place per point, all in one unit.
    """
    choices = [
        sorted(_places(point, size, frame, avoid), key=lambda place: place.cost)
        for point, size in zip(points, sizes, strict=True)
    ]
    # The order decides which labels take the good places: try several, always the same ones.
    shuffled = random.Random(0)
    order = list(range(len(choices)))
    best, lowest = [places[0] for places in choices], math.inf
    for _ in range(STARTS):
        chosen = _settle(choices, order)
        cost = _total(chosen)
        if cost < lowest:
            best, lowest = chosen, cost
        shuffled.shuffle(order)
    return best


def _settle(choices: Sequence[Sequence[Place]], order: Sequence[int]) -> list[Place]:
    """Let every label choose in turn, until none wants to move."""
    chosen = [places[0] for places in choices]
    for _ in range(SWEEPS):
        before = list(chosen)
        for own in order:
            others = [*chosen[:own], *chosen[own + 1 :]]
            best = math.inf
            for place in choices[own]:
                if place.cost >= best:
                    break
                cost = place.cost
                for other in others:
                    cost += _conflict(place, other)
                    if cost >= best:
                        break
                if cost < best:
                    best, chosen[own] = cost, place
        if chosen == before:
            break
    return chosen


def _total(chosen: Sequence[Place]) -> float:
    pairs = ((one, other) for place, one in enumerate(chosen) for other in chosen[:place])
    return sum(place.cost for place in chosen) + sum(_conflict(one, other) for one, other in pairs)


def write_labels(
    figure: Figure,
    points: Sequence[Point],
    texts: Sequence[str],
    avoid: Sequence[Box] = (),
    line_colours: Sequence[str] = (),
    radius: float = 5.0,
    fontsize: float = 8.5,
) -> list[Annotation]:
    """Write a label beside every point of a figure's only axes.

    Call it last: what changes the axes afterwards would move the points away from their labels.

    Args:
        figure: A figure with one axes, whose limits and scales are final.
        points: The points, in data coordinates.
        texts: Their labels.
        avoid: What else labels should not cover, in data coordinates.
        line_colours: Colour of every point's line, if it needs one.
        radius: Half the size of a marker, in pt.
        fontsize: In pt.
    """
    from matplotlib.text import Text

    axes = figure.axes[0]
    figure.draw_without_rendering()  # settles the layout, which all places depend on
    figure.set_layout_engine("none")
    unit = 72 / figure.dpi

    def to_pt(x: float, y: float) -> Point:
        pixel = axes.transData.transform((x, y))
        return float(pixel[0]) * unit, float(pixel[1]) * unit

    sizes = []
    for text in texts:
        probe = Text(0, 0, text, fontsize=fontsize, figure=figure)
        extent = probe.get_window_extent()
        sizes.append((extent.width * unit, extent.height * unit))
    places = [to_pt(*point) for point in points]
    frame = axes.get_window_extent()
    chosen = arrange(
        places,
        sizes,
        (frame.x0 * unit + 2, frame.y0 * unit + 2, frame.x1 * unit - 2, frame.y1 * unit - 2),
        [(x - radius, y - radius, x + radius, y + radius) for x, y in places]
        + [(*to_pt(box[0], box[1]), *to_pt(box[2], box[3])) for box in avoid],
    )
    labels = []
    for number, (point, (x, y), text, place) in enumerate(zip(points, places, texts, chosen, strict=True)):
        labels.append(
            axes.annotate(
                text,
                point,
                (place.box[0] - x, place.box[1] - y),
                textcoords="offset points",
                va="bottom",
                fontsize=fontsize,
                color=INK,
                bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 0.5},  # grid lines would strike it through
                zorder=2.5,
            )
        )
        if place.distance >= LEADER_FROM:
            (x0, y0), (x1, y1) = place.line
            arrow = {"arrowstyle": "-", "linewidth": 0.8, "shrinkA": 0, "shrinkB": 0}
            axes.annotate(
                "",
                point,
                (x1 - x0, y1 - y0),
                textcoords="offset points",
                arrowprops={**arrow, "color": line_colours[number] if line_colours else QUIET},
                zorder=2.4,
            )
    return labels


def _places(point: Point, size: Point, frame: Box, avoid: Sequence[Box]) -> list[Place]:
    (x, y), (width, height) = point, size
    places = []
    for distance in DISTANCES:
        for step in range(DIRECTIONS):
            angle = 2 * math.pi * step / DIRECTIONS
            end = x + distance * math.cos(angle), y + distance * math.sin(angle)
            # The line ends where the box is nearest: at its left when the label is to the right, and so on.
            left = end[0] - width * (1 - math.cos(angle)) / 2
            bottom = end[1] - height * (1 - math.sin(angle)) / 2
            box = (left, bottom, left + width, bottom + height)
            line = (point, end)
            outside = max(frame[0] - box[0], box[2] - frame[2], 0) + max(frame[1] - box[1], box[3] - frame[3], 0)
            cost = distance + LEFTWARD * (1 - math.cos(angle)) / 2 + (OUTSIDE + outside if outside else 0)
            for other in avoid:
                is_own = other[0] <= x <= other[2] and other[1] <= y <= other[3]
                if _overlap(box, other, CLEAR):
                    cost += LABEL_ON_POINT
                elif not is_own and _overlap(box, other, NEAR):
                    cost += LABEL_NEAR_POINT
                elif is_own and other[1] == other[3] and distance >= LEADER_FROM and box[1] < y < box[3]:
                    cost += LINE_ALONG_BAR
                if not is_own and distance >= LEADER_FROM and _crosses(line, other):
                    cost += LINE_THROUGH_POINT
            places.append(Place(box, line, distance, cost))
    return places


def _conflict(one: Place, other: Place) -> float:
    cost = LABEL_ON_LABEL if _overlap(one.box, other.box, 1.0) else 0.0
    lines = [place for place in (one, other) if place.distance >= LEADER_FROM]
    for place in lines:
        if _crosses(place.line, other.box if place is one else one.box):
            cost += LINE_THROUGH_LABEL
    if len(lines) == 2 and _meet(one.line, other.line):
        cost += LINE_ACROSS_LINE
    return cost


def _overlap(one: Box, other: Box, margin: float = 0.0) -> bool:
    return (
        one[0] - margin < other[2]
        and other[0] - margin < one[2]
        and one[1] - margin < other[3]
        and other[1] - margin < one[3]
    )


def _crosses(line: tuple[Point, Point], box: Box) -> bool:
    left, bottom, right, top = box
    (x0, y0), (x1, y1) = line
    if max(x0, x1) < left or min(x0, x1) > right or max(y0, y1) < bottom or min(y0, y1) > top:
        return False
    corners = ((left, bottom), (right, bottom), (right, top), (left, top))
    inside = any(left < x < right and bottom < y < top for x, y in line)
    return inside or any(_meet(line, (corners[i], corners[(i + 1) % 4])) for i in range(4))


def _meet(one: tuple[Point, Point], other: tuple[Point, Point]) -> bool:
    def side(line: tuple[Point, Point], point: Point) -> float:
        (ax, ay), (bx, by) = line
        return (bx - ax) * (point[1] - ay) - (by - ay) * (point[0] - ax)

    return side(one, other[0]) * side(one, other[1]) < 0 and side(other, one[0]) * side(other, one[1]) < 0

"""How a method looks in every picture: colour, line, marker and filling, each of which a reader may go by.

Colours are Okabe and Ito's, which stay apart for every kind of colour vision. There are fewer of them than methods, so
that markers tell apart what shares a colour, and lines and fillings tell whose method it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from peft_aot.compare.summary import MethodRow

# The page gives these four other values on a dark background; no method's colour may be one of them by accident.
INK = "#1f2328"
QUIET = "#6b737c"
GRID = "#d9dee3"
PAPER = "#ffffff"

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
GROUPS = {
    "ours": "methods of this package",
    "peft": "methods of PEFT",
    "reference": "references",
    "control": "controls",
}


@dataclass(frozen=True)
class Style:
    """How a method is drawn.

    Attributes:
        colour: Colour of line and marker.
        line: Matplotlib's line style.
        marker: Matplotlib's marker.
        face: Colour inside the marker.
    """

    colour: str
    line: Literal["-", "--", "-.", ":"]
    marker: str
    face: str


def group_style(group: str, place: int = 0) -> Style:
    """Return the style of the method at a place within its group: 6 colours and 7 markers make 42 differ."""
    colour, marker = COLOURS[place % len(COLOURS)], MARKERS[place % len(MARKERS)]
    if group == "ours":
        return Style(colour, "-", marker, colour)
    if group == "peft":
        return Style(colour, "--", marker, PAPER)
    if group == "reference":
        return Style(INK, "-.", marker, INK)
    return Style(QUIET, ":", marker, PAPER)


def method_styles(methods: Sequence[MethodRow]) -> Mapping[str, Style]:
    """Return a style per method name, the same in all pictures of a comparison."""
    places: dict[str, int] = {}
    styles = {}
    for row in methods:
        place = places.setdefault(row.group, 0)
        styles[row.name] = group_style(row.group, place)
        places[row.group] += 1
    return styles

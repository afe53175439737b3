"""The pictures of a comparison, drawn and encoded. Needs matplotlib (`pip install "peft_aot[plots]"`), no screen."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from peft_aot.compare.summary import Summary

DPI = 200


@dataclass(frozen=True)
class Picture:
    """One picture.

    Attributes:
        name: Stem of its files.
        title: What it shows, in a few words.
        description: What it shows, for whoever cannot see it or wants to know how to read it.
        png: The picture as a PNG file.
        svg: The picture as an SVG file.
    """

    name: str
    title: str
    description: str
    png: bytes
    svg: str


TITLES = {
    "evp": (
        "Search curves",
        "Expected best validation score after n search trials, per task and averaged over tasks. Higher and further "
        "left is better: such a method needs less tuning.",
    ),
    "bytes": (
        "Score and size",
        "Macro score against bytes stored per task. Up and to the left is better.",
    ),
    "ratio": (
        "Score and speed",
        "Macro score against inference time relative to the bare backbone, measured in the same rounds; bars are "
        "quartiles. Up and to the left is better; the dashed line is the backbone itself.",
    ),
}


def plots_available() -> bool:
    """Say whether matplotlib is installed."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def draw_pictures(summary: Summary) -> tuple[Picture, ...]:
    """Draw search curves, score over size, and score over speed; the same summary gives the same bytes."""
    from .curves import draw_curves
    from .scatter import draw_bytes, draw_ratio

    pictures = []
    for name, draw in (("evp", draw_curves), ("bytes", draw_bytes), ("ratio", draw_ratio)):
        title, description = TITLES[name]
        with plain_style(name):
            figure = draw(summary)
            png, svg = io.BytesIO(), io.StringIO()
            figure.savefig(png, format="png", dpi=DPI, metadata={"Title": title, "Software": None})
            figure.savefig(svg, format="svg", metadata={"Title": title, "Date": None, "Creator": None})
        pictures.append(Picture(name, title, description, png.getvalue(), svg.getvalue()))
    return tuple(pictures)


@contextmanager
def plain_style(name: str) -> Iterator[None]:
    """Draw alike everywhere: without the user's own style, and without markup in names (`$` is no formula).

    Args:
        name: What the ids in an SVG file follow from, so that they are the same each time.
    """
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({"svg.hashsalt": name, "text.parse_math": False})
        yield


def inline_svg(picture: Picture) -> str:
    """Return a picture's SVG element for use within an HTML page that has others, named and described for all."""
    svg = picture.svg[picture.svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<title>.*?</title>|<!--.*?-->", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{picture.name}-', svg)
    svg = re.sub(r'xlink:href="#', f'href="#{picture.name}-', svg)
    svg = re.sub(r"url\(#", f"url(#{picture.name}-", svg)
    attributes = f'role="img" aria-labelledby="{picture.name}-title" aria-describedby="{picture.name}-description"'
    return re.sub(r"<svg [^>]*?(viewBox=\"[^\"]*\")[^>]*>", rf"<svg \1 {attributes}>", svg, count=1, flags=re.DOTALL)

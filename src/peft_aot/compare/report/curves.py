"""Search curves as a picture: how good the best of n trials is on average, per task and over tasks."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from peft_aot.compare.summary import MethodRow, Summary

from .entries import percent
from .stretched import closeness, stretch
from .styles import GRID, INK, QUIET, Style, method_styles
from .table import method_label, tasks_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.gridspec import SubplotSpec

COLUMNS = 4
WIDTH = 9.0  # inches; fonts are chosen to be readable when this is shown 800 to 900 pixels wide
PANEL_HEIGHT = 1.65
LEGEND_LINE = 0.195
TITLE_LENGTH = 30  # characters that fit above a small panel


def draw_curves(summary: Summary) -> Figure:
    """Draw expected best validation score (%) over number of search trials: a panel per task, a large one for all.

    The legend is in the order in which the curves of the large panel end.
    """
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    rows = math.ceil(len(summary.tasks) / COLUMNS)
    top = max(2.6, 0.9 + LEGEND_LINE * len(summary.methods))
    heights = [top, *[PANEL_HEIGHT] * rows]
    layout = ConstrainedLayoutEngine(w_pad=0.04, h_pad=0.05)
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.5), layout=layout)
    grid = figure.add_gridspec(len(heights), COLUMNS, height_ratios=heights)
    styles = method_styles(summary.methods)
    shared = figure.add_subplot(grid[0, : COLUMNS // 2])
    tasks = next((row.macro_tasks for row in summary.methods if row.evp), ())
    title = f"macro average of {tasks_words(summary, tasks)}" if tasks else "macro average"
    _panel(shared, {row.name: row.evp for row in summary.methods}, styles, title, large=True)
    shared.set_ylabel("expected best score, %\naxis stretched at the top", fontsize=9, color=INK)
    shared.set_xlabel("search trials", fontsize=9, color=INK)
    _legend(figure, grid[0, COLUMNS // 2 :], summary.methods, styles)
    for place, task in enumerate(summary.tasks):
        axes = figure.add_subplot(grid[1 + place // COLUMNS, place % COLUMNS])
        _panel(axes, {row.name: row.cells[place].evp for row in summary.methods}, styles, task.label)
    return figure


def _panel(
    axes: Axes, curves: Mapping[str, Sequence[float]], styles: Mapping[str, Style], title: str, large: bool = False
) -> None:
    title = textwrap.fill(title, 2 * TITLE_LENGTH if large else TITLE_LENGTH)
    axes.set_title(title, fontsize=10 if large else 9, loc="left", color=INK)
    axes.tick_params(labelsize=8, colors=QUIET, length=2.5)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    longest = max(map(len, curves.values()), default=0)
    if not longest:
        axes.set(xticks=[], yticks=[])
        text = "no task has a score of every method yet" if large else "nothing has run yet"
        axes.text(0.5, 0.5, text, transform=axes.transAxes, ha="center", va="center", color=QUIET, fontsize=8)
        return
    every = max(4, math.ceil(longest / 3))
    # Later ones are drawn above: this package's methods, which come first, must not be hidden by controls.
    for place, (name, curve) in reversed(list(enumerate(curves.items()))):
        if not curve:
            continue
        style = styles[name]
        axes.plot(
            range(1, len(curve) + 1),
            [100 * score for score in curve],
            color=style.colour,
            linestyle=style.line,
            linewidth=1.3,
            marker=style.marker,
            markersize=4.5 if large else 3.8,
            markerfacecolor=style.face,
            markeredgewidth=1.0,
            # Not all at once, nor all at the same trials: markers would hide each other.
            markevery=(place % min(every, len(curve)), every),
            clip_on=False,
        )
    scores = [100 * score for curve in curves.values() for score in curve]
    ends = [100 * curve[-1] for curve in curves.values() if curve]
    stretch(axes, "y", [*scores, max(ends) - 1], max(ends), closeness(ends), gap=0.07 if large else 0.13)
    step = max(1, math.ceil(longest / (8 if large else 4)))
    axes.set_xticks(range(1 if step == 1 else step, longest + 1, step))
    axes.set_xlim(1 - 0.04 * longest, longest + 0.04 * longest)


def _legend(figure: Figure, where: SubplotSpec, methods: Sequence[MethodRow], styles: Mapping[str, Style]) -> None:
    """Name the methods, the one whose curve ends highest first."""
    from matplotlib.lines import Line2D

    shown = sorted(
        (row for row in methods if row.evp or any(cell.evp for cell in row.cells)),
        key=lambda row: -row.evp[-1] if row.evp else math.inf,
    )
    axes = figure.add_subplot(where)
    axes.set_axis_off()
    if not shown:
        return
    handles = [
        Line2D([], [], color=s.colour, linestyle=s.line, linewidth=1.3, marker=s.marker, markersize=5,
               markerfacecolor=s.face)
        for s in (styles[row.name] for row in shown)
    ]  # fmt: skip
    texts = [f"{percent(row.evp[-1])}  {method_label(row)}" if row.evp else method_label(row) for row in shown]
    legend = axes.legend(
        handles,
        [f"{place}" for place in range(len(texts))],
        loc="center left",
        bbox_to_anchor=(0.0, 0.5),
        borderaxespad=0,
        frameon=False,
        fontsize=8.5,
        handlelength=3.2,
        labelspacing=0.45,
        title="in the order in which the curves end" if shown[0].evp else None,
        title_fontsize=8.5,
        alignment="left",
    )
    legend.get_title().set_color(QUIET)
    legend.set_in_layout(False)
    for line, text in zip(legend.get_texts(), texts, strict=True):
        line.set_text(text)  # set here, since matplotlib leaves out labels that begin with an underscore
        line.set_color(INK)

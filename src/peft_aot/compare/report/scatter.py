"""Macro score against cost as pictures: against bytes stored, and against inference time."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING

from peft_aot.compare.summary import MethodRow, Summary
from peft_aot.sizes import format_bytes

from .labels import Box, write_labels
from .stretched import closeness, stretch
from .styles import GRID, GROUPS, INK, QUIET, group_style, method_styles
from .table import method_label, tasks_words

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZE = (9.0, 5.6)  # inches
NEAR = 0.03  # of the backbone's time: the scale of the axis of ratios
LINE_LENGTH = 125  # characters that fit below the axes
GROUP_SAMPLES = 2  # markers that stand for a group in the legend


def draw_bytes(summary: Summary) -> Figure:
    """Draw the macro score (%) over the bytes stored per task, on a logarithmic axis."""
    rows = [row for row in summary.methods if row.macro is not None and row.stored_bytes]
    figure, axes = _frame(summary, rows, "stored per task, head included, without a fused table (logarithmic)")
    sizes = [row.stored_bytes or 0.0 for row in rows]
    if rows:
        axes.set_xscale("log")
        axes.set_xlim(min(sizes) / 2, max(sizes) * 2)
        axes.xaxis.set_major_formatter(lambda value, _: format_bytes(value))
    _draw(figure, axes, summary, rows, sizes)
    return figure


def draw_ratio(summary: Summary) -> Figure:
    """Draw the macro score (%) over the inference time relative to the bare backbone, with quartiles.

    The axis is stretched about 1, where most methods are.
    """
    rows = [row for row in summary.methods if row.macro is not None and row.ratio is not None]
    figure, axes = _frame(summary, rows, "inference time / bare backbone's, axis stretched about 1; bars: quartiles")
    ratios = [row.ratio or 0.0 for row in rows]
    bars = [(row.ratio_low or ratio, row.ratio_high or ratio) for row, ratio in zip(rows, ratios, strict=True)]
    if rows:
        ends = [end for bar in bars for end in bar]
        stretch(axes, "x", [*ends, *ratios, 0.99, 1.01], 1.0, NEAR, gap=0.08)
        axes.axvline(1, color=QUIET, linewidth=1.2, linestyle="--", zorder=1)
    _draw(figure, axes, summary, rows, ratios, bars)
    return figure


def _frame(summary: Summary, rows: Sequence[MethodRow], cost: str) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.lines import Line2D

    figure = Figure(figsize=SIZE, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(QUIET)
    axes.tick_params(which="both", labelsize=8.5, colors=QUIET)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    average = tasks_words(summary, rows[0].macro_tasks if rows else ())
    axes.set_ylabel(f"macro score of {average}, %, axis stretched at the top", fontsize=9, color=INK)
    missing = [method_label(row) for row in summary.methods if row not in rows]
    if rows and missing:
        words = f"not shown, for want of a macro score or of this number: {', '.join(missing)}"
        cost = f"{cost}\n{textwrap.fill(words, LINE_LENGTH)}"
    axes.set_xlabel(cost, fontsize=9, color=INK)
    handles = [
        tuple(
            Line2D([], [], linestyle="none", marker=style.marker, markersize=6.5, color=style.colour,
                   markerfacecolor=style.face, markeredgewidth=1.3)
            for style in (group_style(group, place) for place in range(min(GROUP_SAMPLES, len(members))))
        )
        for group in GROUPS if (members := [row for row in rows if row.group == group])
    ]  # fmt: skip
    names = [name for group, name in GROUPS.items() if any(row.group == group for row in rows)]
    if handles:
        figure.legend(  # type: ignore[call-overload]  # a tuple of artists is one handle, for HandlerTuple
            handles,
            names,
            handler_map={tuple: HandlerTuple(ndivide=None, pad=0.4)},
            loc="outside upper left",
            ncols=len(handles),
            frameon=False,
            fontsize=8.5,
            labelcolor=INK,
            handlelength=2.2,
        )
    return figure, axes


def _draw(
    figure: Figure,
    axes: Axes,
    summary: Summary,
    rows: Sequence[MethodRow],
    values: Sequence[float],
    bars: Sequence[tuple[float, float]] = (),
) -> None:
    if not rows:
        axes.set(xticks=[], yticks=[], ylabel="macro score, %")
        axes.text(0.5, 0.5, "nothing to show yet", transform=axes.transAxes, ha="center", va="center", color=QUIET)
        return
    styles = method_styles(summary.methods)
    scores = [100 * (row.macro or 0.0) for row in rows]
    stretch(axes, "y", [*scores, max(scores) - 1], max(scores), closeness(scores), gap=0.07)
    avoid: list[Box] = []
    if bars:
        low, high = axes.get_ylim()
        avoid.append((1.0, low, 1.0, high))
    # Later ones are drawn above: this package's methods, which come first, must not be hidden by controls.
    for place, (row, value, score) in reversed(list(enumerate(zip(rows, values, scores, strict=True)))):
        style = styles[row.name]
        if bars:
            low, high = bars[place]
            axes.plot([low, high], [score, score], color=style.colour, linewidth=1.2, zorder=3)
            avoid.append((low, score, high, score))
        axes.plot([value], [score], linestyle="none", marker=style.marker, markersize=8, color=style.colour,
                  markerfacecolor=style.face, markeredgewidth=1.4, zorder=4)  # fmt: skip
    write_labels(
        figure,
        list(zip(values, scores, strict=True)),
        [method_label(row) for row in rows],
        avoid,
        [styles[row.name].colour for row in rows],
    )

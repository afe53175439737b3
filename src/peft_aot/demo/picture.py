"""The comparison as a picture: one row per method, one panel per question.

Needs matplotlib (`pip install "peft_aot[plots]"`); draws without a screen.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from peft_aot.demo.results import Comparison
from peft_aot.sizes import format_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's palette: these two stay apart for every kind of colour vision, and in print.
OURS = "#0072B2"
OTHERS = "#E69F00"
GREY = "#595959"


def plots_available() -> bool:
    """Say whether matplotlib is installed."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def draw(comparison: Comparison, path: Path) -> Path:
    """Draw accuracy, inference time, size and training time of every method.

    Args:
        comparison: What was measured.
        path: PNG file to write.

    Returns:
        `path`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    rows = comparison.rows
    figure = Figure(figsize=(14, 1.9 + 0.52 * len(rows)), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(1, 4, sharey=True, width_ratios=(1.15, 1, 1, 1))
    colours = [OURS if row.ours else OTHERS for row in rows]
    titles = [row.title for row in rows]

    _accuracy(panels[0], titles, [100 * row.score for row in rows], colours, comparison.test_examples)
    _bars(
        panels[1],
        titles,
        [row.ratio for row in rows],
        colours,
        "Inference time, 1 = bare backbone",
        "ratio within one run (lower is better)",
        lambda value: f"{value:.2f}x",
        spread=([row.ratio - row.ratio_low for row in rows], [row.ratio_high - row.ratio for row in rows]),
    )
    panels[1].axvline(1, color=GREY, linewidth=1.2, linestyle="--", zorder=3)
    _bars(
        panels[2],
        titles,
        [row.stored_bytes / 1e6 for row in rows],
        colours,
        "Stored per task",
        "MB, logarithmic (lower is better)",
        lambda value: format_bytes(value * 1e6),
        logarithmic=True,
    )
    _bars(
        panels[3],
        titles,
        [row.train_seconds for row in rows],
        colours,
        "Training time",
        "seconds (lower is better)",
        lambda value: f"{value:.0f} s",
    )
    panels[0].invert_yaxis()
    figure.suptitle(f"AoT P-Tuning beside other methods\n{comparison.task}", fontsize=14, fontweight="bold")
    figure.legend(
        handles=[
            Patch(color=OURS, label="AoT P-Tuning (ours)"),
            Patch(color=OTHERS, label="other methods"),
        ],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=11,
    )
    figure.savefig(path, format="png", metadata={"Title": "AoT P-Tuning beside other methods"})
    return path


def _accuracy(axes: Axes, titles: Sequence[str], percents: Sequence[float], colours: list[str], examples: int) -> None:
    """Draw points, not bars: the axis does not start at zero. The line shows two standard errors of a share."""
    errors = [200 * math.sqrt(p / 100 * (1 - p / 100) / examples) for p in percents]
    low = math.floor(min(p - e for p, e in zip(percents, errors, strict=True)) / 5) * 5
    for place, (percent, error, colour) in enumerate(zip(percents, errors, colours, strict=True)):
        right = min(percent + error, 100)
        axes.plot([max(percent - error, 0), right], [place, place], color=colour, linewidth=2.5, alpha=0.5)
        axes.plot([percent], [place], marker="o", markersize=9, color=colour)
        axes.annotate(
            f"{percent:.1f} %", (percent, place), (0, 9), textcoords="offset points", ha="center", fontsize=10
        )
    axes.set_yticks(range(len(titles)), labels=list(titles), fontsize=11)
    span = 100 - max(low, 0)
    axes.set_xlim(max(low, 0) - 0.05 * span, 100 + 0.1 * span)
    axes.set_ylim(-0.7, len(titles) - 0.4)
    axes.grid(axis="x", color="#DDDDDD")
    _frame(axes, "Test accuracy", "% (higher is better); line: 2 standard errors")


def _bars(
    axes: Axes,
    titles: Sequence[str],
    values: Sequence[float],
    colours: list[str],
    title: str,
    unit: str,
    text: Callable[[float], str],
    spread: tuple[list[float], list[float]] | None = None,
    logarithmic: bool = False,
) -> None:
    places = range(len(titles))
    ends = values if spread is None else [value + above for value, above in zip(values, spread[1], strict=True)]
    if logarithmic:
        axes.set_xscale("log")
        axes.set_xlim(min(values) / 3, max(ends) * 30)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_xlim(0, max(ends) * 1.35)
    axes.barh(places, values, color=colours, height=0.62, zorder=2)
    if spread is not None:
        axes.errorbar(values, places, xerr=spread, fmt="none", ecolor="#222222", elinewidth=1.2, capsize=3, zorder=4)
    for place, value, end in zip(places, values, ends, strict=True):
        axes.annotate(text(value), (end, place), (6, 0), textcoords="offset points", va="center", fontsize=10)
    axes.grid(axis="x", color="#DDDDDD", zorder=0)
    _frame(axes, title, unit)


def _frame(axes: Axes, title: str, unit: str) -> None:
    axes.set_title(title, fontsize=12)
    axes.set_xlabel(unit, fontsize=10)
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)

"""The report as one HTML page that needs nothing beside it: no network, no script to be readable, no colour to be told.

The template is `page.html`; what it shows is put together here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined

from peft_aot.compare.summary import Cell, Summary, TaskColumn

from .entries import Entry, percent, score_entry, settings_text
from .figures import Picture, inline_svg
from .table import build_table, method_label

SECTIONS = (
    ("what", "What was compared"),
    ("table", "Scores and costs"),
    ("notes", "Notes"),
    ("figures", "Figures"),
    ("tasks", "Task by task"),
    ("reading", "How to read the search curves"),
)
OWNERS = {"ours": ", of this package", "peft": ", of PEFT"}


@dataclass(frozen=True)
class Search:
    """One method's search on one task, as the page shows it.

    Attributes:
        label: The method.
        cell: Its cell.
        entry: Its score.
        settings: The best settings, as text.
        trials: Every trial's score, and whether it is the best.
        curve: The expected best of 1, 2, 4, ... trials.
    """

    label: str
    cell: Cell
    entry: Entry
    settings: str
    trials: tuple[tuple[str, bool], ...]
    curve: tuple[str, ...]


@dataclass(frozen=True)
class TaskDetails:
    """One task, as the page shows it.

    Attributes:
        column: The task.
        rows: Every method's search.
    """

    column: TaskColumn
    rows: tuple[Search, ...]


def render_page(summary: Summary, pictures: Sequence[Picture]) -> str:
    """Render a comparison as an HTML page.

    Args:
        summary: The comparison.
        pictures: Its pictures, which the page contains; none if they cannot be drawn.
    """
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["dashes"] = _dashes
    environment.globals["zip"] = zip
    return environment.from_string(_read("page.html")).render(
        summary=summary,
        sections=SECTIONS,
        owners=OWNERS,
        facts=_facts(summary),
        table=build_table(summary),
        pictures=[(picture, inline_svg(picture)) for picture in pictures],
        points=[(method_label(row), [settings_text(point) for point in row.points]) for row in summary.methods],
        tasks=[_details(summary, place) for place in range(len(summary.tasks))],
        style=_read("page.css"),
        script=_read("page.js"),
    )


def _read(name: str) -> str:
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def _facts(summary: Summary) -> list[tuple[str, str]]:
    trials = f"{summary.trials} {'trial' if summary.trials == 1 else 'trials'} per method and task"
    seeds = f", the best settings with {summary.seeds} seeds" if summary.seeds > 1 else ", one seed"
    machines = "machine" if len(summary.machines) == 1 else "machines"
    return [
        ("backbone", summary.backbone),
        ("search", f"{trials}{seeds}"),
        *(
            (name.replace("_", " "), _value(value))
            for name, value in summary.protocol.items()
            if name != "model"  # the backbone, perhaps as a path of somebody's machine
        ),
        (machines, "; ".join(summary.machines) or "none yet"),
        ("versions", ", ".join(f"{name} {version}" for name, version in summary.versions.items()) or "none yet"),
    ]


def _value(value: Any) -> str:
    if value is None:
        return "not set"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _details(summary: Summary, place: int) -> TaskDetails:
    rows = [_search(method_label(row), row.cells[place]) for row in summary.methods]
    return TaskDetails(summary.tasks[place], tuple(rows))


def _search(label: str, cell: Cell) -> Search:
    best = max((score for score in cell.trials if score is not None), default=None)
    place = None if best is None else cell.trials.index(best)  # of equals the first, as the search chooses
    return Search(
        label=label,
        cell=cell,
        entry=score_entry(cell),
        settings=settings_text(cell.best_settings),
        trials=tuple(
            ("failed" if score is None else percent(score), number == place) for number, score in enumerate(cell.trials)
        ),
        curve=tuple(f"{n}: {percent(cell.evp[n - 1])}" for n in _doublings(len(cell.evp))),
    )


def _doublings(last: int) -> list[int]:
    """Return 1, 2, 4, ... and `last`."""
    return sorted({*(1 << power for power in range(last.bit_length())), last} - {0})


def _dashes(spread: str) -> str:
    """Set a range with a dash; one with negative ends has a word between them already."""
    return spread if " to " in spread else spread.replace("-", "\N{EN DASH}")

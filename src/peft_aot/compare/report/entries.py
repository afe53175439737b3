"""What one cell of a table shows, in parts that each rendering puts together in its own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from peft_aot.compare.summary import Cell, MethodRow
from peft_aot.sizes import counted, format_bytes

NOTHING = "-"


@dataclass(frozen=True)
class Entry:
    """One cell of a table.

    Attributes:
        text: What stands there: a number in the column's unit, a word, or `NOTHING`.
        spread: A range around it, such as "77.9-78.5", or "".
        remark: A word behind it, such as "running", or "".
        value: What the cell is sorted by, or None if there is no number.
        best: Whether it is the best of its column.
        detail: A sentence for whoever asks for more, or "".
    """

    text: str
    spread: str = ""
    remark: str = ""
    value: float | None = None
    best: bool = False
    detail: str = ""

    def __str__(self) -> str:
        """The whole entry on one line."""
        spread = f" ({self.spread})" if self.spread else ""
        remark = f", {self.remark}" if self.remark else ""
        return f"{self.text}{spread}{remark}"


def percent(score: float) -> str:
    """Write a score in [-1, 1] times 100, with one decimal."""
    return f"{100 * score + 0.0:.1f}".replace("-0.0", "0.0")


def duration(seconds: float) -> str:
    """Write a time in the unit in which it has two or three digits, such as `4.2 min`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 99.95 else f"{minutes / 60:.1f} h"


def settings_text(settings: Mapping[str, Any] | None) -> str:
    """Write settings as people read them: `learning_rate 0.001, rank 64`."""
    shown = {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in (settings or {}).items()}
    return ", ".join(f"{name} {value}" for name, value in shown.items())


def score_entry(cell: Cell) -> Entry:
    """Show a method's score on a task, or why there is none."""
    failed = counted(cell.failed, "failed run") if cell.failed else ""
    tried = counted(len(cell.trials), "search run")
    if cell.median is None:
        said = [cell.reason, f"{tried} so far" if cell.status == "running" else "", failed]
        return Entry(NOTHING if cell.status == "done" else cell.status, detail="; ".join(filter(None, said)))
    said = [
        f"{tried}, {counted(len(cell.seed_scores), 'seed')}",
        settings_text(cell.best_settings),
        failed,
    ]
    return Entry(
        percent(cell.median),
        _range(cell.low, cell.high, percent) if len(cell.seed_scores) > 1 else "",
        "" if cell.status == "done" else cell.status,
        cell.median,
        detail="; ".join(filter(None, said)),
    )


def macro_entry(row: MethodRow) -> Entry:
    """Show a method's macro average; it is as unfinished as the scores that it is made of."""
    if row.macro is None:
        return Entry(NOTHING, detail="a task of the macro average has no score")
    counted = [cell for cell in row.cells if cell.task in row.macro_tasks]
    running = any(cell.status not in ("done", "failed") for cell in counted)
    return Entry(
        percent(row.macro),
        remark="running" if running else "",
        value=row.macro,
        detail=f"mean over {len(row.macro_tasks)} {'task' if len(row.macro_tasks) == 1 else 'tasks'}",
    )


def ratio_entry(row: MethodRow) -> Entry:
    """Show the inference time over the bare backbone's, its quartiles, and how the method was served."""
    if row.ratio is None:
        return Entry(NOTHING, detail="not measured")
    spread = _range(row.ratio_low, row.ratio_high, lambda value: f"{value:.2f}")
    return Entry(f"{row.ratio:.2f}", spread, row.variant, row.ratio)


def count_entry(number: float | None) -> Entry:
    """Show a number of parameters."""
    return Entry(NOTHING) if number is None else Entry(f"{number:,.0f}", value=number)


def bytes_entry(number: float | None) -> Entry:
    """Show a size."""
    return Entry(NOTHING) if number is None else Entry(format_bytes(number), value=number)


def seconds_entry(number: float | None) -> Entry:
    """Show a time."""
    return Entry(NOTHING) if number is None else Entry(duration(number), value=number)


def mark_best(entries: list[Entry]) -> list[Entry]:
    """Mark what is best of the finished scores of a column: the highest, and all that round to the same text."""
    finished = [entry for entry in entries if entry.value is not None and not entry.remark]
    if not finished:
        return entries
    best = max(finished, key=lambda entry: entry.value or 0.0).text
    return [
        replace(entry, best=entry.value is not None and not entry.remark and entry.text == best) for entry in entries
    ]


def _range(low: float | None, high: float | None, write: Callable[[float], str]) -> str:
    if low is None or high is None:
        return ""
    between = " to " if low < 0 or high < 0 else "-"
    return f"{write(low)}{between}{write(high)}"

"""The rows and columns of a comparison, once, so that terminal, Markdown, LaTeX and HTML never differ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from peft_aot.compare.summary import MethodRow, Summary
from peft_aot.sizes import counted

from .entries import Entry, bytes_entry, count_entry, macro_entry, mark_best, ratio_entry, score_entry, seconds_entry

LONGEST_NAME = 34
"""Longer titles would leave no room for numbers; such a method goes by its name."""

MIXES = {
    "any heads": "any heads (tasks with heads of their own)",
    "adapters": "adapters (tasks that share one head)",
    "no": "no (one task per batch)",
}


@dataclass(frozen=True)
class Column:
    """One column after that of the methods.

    Attributes:
        key: What a program calls it; "task:" and the task's name for a score.
        heading: What stands above it.
        detail: What it is, in a sentence.
        kind: "score" (a task, or the macro average; high is good), "cost" (low is good) or "word".
    """

    key: str
    heading: str
    detail: str
    kind: Literal["score", "cost", "word"]


@dataclass(frozen=True)
class Line:
    """One method.

    Attributes:
        method: The method.
        label: What it is called in tables and pictures.
        entries: One per column.
    """

    method: MethodRow
    label: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Block:
    """Methods that are compared with each other.

    Attributes:
        title: What they are.
        lines: The methods.
    """

    title: str
    lines: tuple[Line, ...]


@dataclass(frozen=True)
class Table:
    """A whole table.

    Attributes:
        caption: What was compared, in a sentence.
        columns: Columns after that of the methods: tasks, macro average, costs.
        blocks: The methods: parameter-efficient ones, references, controls; empty blocks are left out.
        notes: What a reader must know.
        legend: What the columns mean.
    """

    caption: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    notes: tuple[str, ...]
    legend: tuple[str, ...]

    @property
    def lines(self) -> tuple[Line, ...]:
        """The methods of all blocks."""
        return tuple(line for block in self.blocks for line in block.lines)


COSTS: tuple[tuple[Column, Callable[[MethodRow], Entry]], ...] = (
    (
        Column("trained", "trained", "numbers trained per task, head included (median over tasks)", "cost"),
        lambda row: count_entry(row.trained_parameters),
    ),
    (
        Column("stored", "stored", "bytes stored per task, head included, without a fused table (median)", "cost"),
        lambda row: bytes_entry(row.stored_bytes),
    ),
    (
        Column("memory", "peak memory", "memory that training added to the process (highest of the tasks)", "cost"),
        lambda row: bytes_entry(row.peak_memory_bytes),
    ),
    (
        Column("training", "training", "time of one training run, evaluations included (median over tasks)", "cost"),
        lambda row: seconds_entry(row.train_seconds),
    ),
    (
        Column(
            "ratio",
            "time / backbone",
            "inference time over the bare backbone's in the same round: median and quartiles over rounds; behind it "
            "how the method was served, if there are several ways",
            "cost",
        ),
        ratio_entry,
    ),
    (
        Column("mixes", "mixes", "what one batch may mix", "word"),
        lambda row: Entry(row.mixes, detail=MIXES.get(row.mixes, "")),
    ),
)

BLOCKS = (
    ("parameter-efficient methods", ("ours", "peft")),
    ("references", ("reference",)),
    ("controls", ("control",)),
)


def method_label(row: MethodRow) -> str:
    """What a method is called in tables and pictures: its title, or its name where the title is a sentence."""
    return row.title if 0 < len(row.title) <= LONGEST_NAME else row.name


def tasks_words(summary: Summary, names: Sequence[str]) -> str:
    """Count the tasks that an average is taken over, and say whether official rows are missing in any."""
    partial = any(task.partial for task in summary.tasks if task.name in names)
    return f"{len(names)} {'task' if len(names) == 1 else 'tasks'}{' (partial data)' if partial else ''}"


def build_table(summary: Summary) -> Table:
    """Lay a comparison out as a table."""
    columns = [
        *(
            Column(f"task:{task.name}", task.label, f"{' and '.join(task.metrics)} on {task.scored}", "score")
            for task in summary.tasks
        ),
        Column("macro", "macro", _macro_sentence(summary), "score"),
        *(column for column, _ in COSTS),
    ]
    blocks = [
        Block(title, _lines([row for row in summary.methods if row.group in groups], ranked=groups == BLOCKS[0][1]))
        for title, groups in BLOCKS
    ]
    return Table(
        caption=_caption(summary),
        columns=tuple(columns),
        blocks=tuple(block for block in blocks if block.lines),
        notes=summary.notes,
        legend=_legend(summary),
    )


def _lines(rows: Sequence[MethodRow], ranked: bool) -> tuple[Line, ...]:
    """Lay methods out; scores compete only where the methods do."""
    if not rows:
        return ()
    scores = [
        [*by_task, macro]
        for by_task, macro in zip(
            ([score_entry(cell) for cell in row.cells] for row in rows), map(macro_entry, rows), strict=True
        )
    ]
    if ranked:
        scores = [list(row) for row in zip(*(mark_best(list(c)) for c in zip(*scores, strict=True)), strict=True)]
    return tuple(
        Line(row, method_label(row), (*own, *(write(row) for _, write in COSTS)))
        for row, own in zip(rows, scores, strict=True)
    )


def _caption(summary: Summary) -> str:
    tasks, methods = len(summary.tasks), len(summary.methods)
    return (
        f"{methods} {'method' if methods == 1 else 'methods'} on {tasks} {'task' if tasks == 1 else 'tasks'}, "
        f"backbone {summary.backbone}: {summary.runs_done:,} of {summary.runs_planned:,} runs done"
    )


def _macro_sentence(summary: Summary) -> str:
    labels = {task.name: task.label for task in summary.tasks}
    counted = next((row.macro_tasks for row in summary.methods if row.macro is not None), ())
    if not counted:
        return "mean over tasks; none yet, since no task has a score of every method"
    return f"mean over {', '.join(labels.get(name, name) for name in counted)}"


def _legend(summary: Summary) -> tuple[str, ...]:
    spread = f"the median over {summary.seeds} seeds, in brackets the lowest and highest"
    seeds = spread if summary.seeds > 1 else "one seed"
    metrics = "; ".join(f"{task.label}: {' and '.join(task.metrics)} on {task.scored}" for task in summary.tasks)
    groups = {row.group for row in summary.methods}
    beside = [words for group, words in (("reference", "references"), ("control", "controls")) if group in groups]
    outside = f"; {' and '.join(beside)} do not compete" if beside else ""
    found = {row.mixes for row in summary.methods}
    mixes = [words for word, words in MIXES.items() if word in found]
    return (
        f"A task's score is 100 x the mean of its metrics ({metrics}), with the best settings of "
        f"{counted(summary.trials, 'search run')}: {seeds}.",
        f"Bold: the best finished score among the parameter-efficient methods{outside}.",
        f"macro: {_macro_sentence(summary)}.",
        *(f"{column.heading}: {column.detail}." for column, _ in COSTS[:-1]),
        f"mixes: what one batch may mix: {', '.join(mixes) or 'nothing yet'}.",
    )

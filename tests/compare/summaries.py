"""Made-up comparisons: what `peft_aot.compare.report` shows, without training anything.

Numbers are drawn from a seeded generator, so that every call gives the same ones.
"""

from __future__ import annotations

import random
import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from peft_aot.compare.summary import Cell, MethodRow, Summary, TaskColumn

# name, title, group, skill, stored bytes, ratio, mixes, search space
METHODS = (
    ("aot", "AoT P-Tuning (FC)", "ours", 0.93, 4.72e6, 1.021, "any heads", ("rank", (64, 256))),
    ("aot-kron", "AoT P-Tuning (Kronecker)", "ours", 0.95, 9.61e6, 1.019, "any heads", ("rank", (10, 20))),
    ("bitfit", "BitFit", "ours", 0.91, 0.41e6, 1.003, "any heads", ("weight_decay", (0.0, 0.01))),
    ("houlsby", "Houlsby adapters", "ours", 0.97, 9.55e6, 1.094, "any heads", ("rank", (16, 64))),
    ("pafi", "PaFi", "ours", 0.96, 5.01e6, 1.001, "no", ("weight_decay", (0.0, 0.01))),
    ("hiwi", "HiWi", "ours", 0.94, 0.39e6, 1.002, "any heads", ("rank", (4, 16))),
    ("lora", "LoRA", "peft", 0.97, 2.36e6, 1.061, "adapters", ("rank", (8, 16))),
    ("ia3", "IA3", "peft", 0.90, 0.22e6, 1.012, "no", ("weight_decay", (0.0, 0.01))),
    ("prompt", "Prompt tuning", "peft", 0.62, 0.065e6, 1.972, "no", ("virtual_tokens", (10, 20))),
    ("prefix", "Prefix tuning", "peft", 0.89, 1.48e6, 1.083, "no", ("virtual_tokens", (10, 20))),
    ("full", "Full fine-tuning", "reference", 1.0, 498.6e6, 1.0, "no", ("weight_decay", (0.0, 0.01))),
    ("head", "Head only", "reference", 0.35, 0.006e6, 1.0, "no", ("weight_decay", (0.0, 0.01))),
    ("aot-constant", "AoT, one row for all tokens", "control", 0.80, 0.04e6, 1.014, "any heads", ("rank", (64, 256))),
    ("aot-layer0", "AoT, first block only", "control", 0.70, 0.45e6, 1.006, "any heads", ("rank", (64, 256))),
    ("aot-random", "AoT, shuffled token ids", "control", 0.55, 4.72e6, 1.022, "any heads", ("rank", (64, 256))),
    ("aot-hidden", "AoT, rows from hidden states", "control", 0.92, 4.72e6, 1.134, "any heads", ("rank", (64, 256))),
)

# name, metrics, splits with missing rows, training examples, score of chance, score of full fine-tuning
TASKS = (
    ("cola", ("matthews_correlation",), (), 8551, 0.0, 0.62),
    ("sst2", ("accuracy",), (), 67349, 0.51, 0.945),
    ("mrpc", ("accuracy", "f1"), (), 3668, 0.74, 0.90),
    ("stsb", ("pearson", "spearman"), (), 5749, 0.10, 0.905),
    ("qqp", ("accuracy", "f1"), ("train",), 100000, 0.6, 0.895),
    ("mnli", ("accuracy",), ("train",), 100000, 0.35, 0.86),
    ("qnli", ("accuracy",), (), 104743, 0.51, 0.925),
    ("rte", ("accuracy",), (), 2490, 0.53, 0.78),
    ("boolq", ("accuracy",), ("train", "validation"), 5000, 0.62, 0.79),
    ("cb", ("accuracy", "macro_f1"), (), 250, 0.45, 0.88),
    ("copa", ("accuracy",), (), 400, 0.5, 0.69),
    ("super_glue/rte", ("accuracy",), ("validation",), 2490, 0.53, 0.785),
)
RATES = (1e-3, 3e-3, 5e-3, 1e-2)


def expected_best(scores: Sequence[float]) -> tuple[float, ...]:
    """The expected maximum of 1, 2, ... draws with replacement, from every draw's distribution."""
    ordered, count = sorted(scores), len(scores)
    curve = []
    for draws in range(1, count + 1):
        at_most = [((place + 1) / count) ** draws for place in range(count)]
        chances = [now - before for now, before in zip(at_most, [0.0, *at_most], strict=False)]
        curve.append(sum(chance * score for chance, score in zip(chances, ordered, strict=True)))
    return tuple(curve)


def done_cell(task: str, method: str, trials: Sequence[float | None], seeds: Sequence[float], **settings: Any) -> Cell:
    """A finished cell of these scores."""
    scored = [score for score in trials if score is not None]
    return Cell(
        task=task,
        method=method,
        status="done",
        reason="",
        trials=tuple(trials),
        best_settings=settings or {"learning_rate": 1e-3},
        seed_scores=tuple(seeds),
        median=statistics.median(seeds),
        low=min(seeds),
        high=max(seeds),
        evp=expected_best(scored),
        failed=len(trials) - len(scored),
    )


def empty_cell(task: str, method: str, status: str = "not run", reason: str = "") -> Cell:
    """A cell without scores."""
    return Cell(task, method, status, reason, (), None, (), None, None, None, (), 0)


def method_row(name: str, cells: Sequence[Cell], group: str = "ours", **changes: Any) -> MethodRow:
    """A method with these cells and nothing measured but what `changes` says."""
    row = MethodRow(
        name, changes.pop("title", name), group, None, (), (), None, None, None, None, None, None, None, "", "no",
        tuple(cells),
    )  # fmt: skip
    return replace(row, **changes)


def summary(tasks: Sequence[TaskColumn], methods: Sequence[MethodRow], **changes: Any) -> Summary:
    """A comparison of these methods on these tasks."""
    whole = Summary(
        backbone="roberta-base",
        tasks=tuple(tasks),
        methods=tuple(methods),
        protocol={
            "model": "roberta-base",
            "epochs": 5.0,
            "patience": 2,
            "batch_size": 32,
            "max_length": None,
            "precision": "bf16",
        },
        trials=8,
        seeds=3,
        runs_done=0,
        runs_planned=10 * len(tasks) * len(methods),
        machines=("AMD EPYC 7763, 2 threads",),
        versions={"peft_aot": "0.1.0", "peft": "0.21.2", "torch": "2.13.0", "transformers": "5.23.0"},
        notes=(),
    )
    return replace(whole, **changes)


def unstarted(tasks: int = 3, methods: int = 4) -> Summary:
    """A comparison of which nothing has run."""
    columns = [TaskColumn(task[0], task[1], (), 0) for task in TASKS[:tasks]]
    rows = [
        method_row(name, [empty_cell(task.name, name) for task in columns], group, title=title, mixes=mixes)
        for name, title, group, _, _, _, mixes, _ in METHODS[:methods]
    ]
    return summary(columns, rows)


def finished(tasks: int = len(TASKS), methods: int = len(METHODS)) -> Summary:
    """A finished comparison."""
    chance = random.Random(7)
    columns = [TaskColumn(name, metrics, partial, rows) for name, metrics, partial, rows, _, _ in TASKS[:tasks]]
    rows = [_finished_row(place, tasks, chance) for place in range(methods)]
    partial = [f"{column.label}: official rows of {', '.join(column.partial)} are missing" for column in columns
               if column.partial]  # fmt: skip
    return summary(columns, rows, runs_done=10 * tasks * methods, notes=tuple(partial))


def _finished_row(place: int, tasks: int, chance: random.Random) -> MethodRow:
    name, title, group, skill, size, ratio, mixes, (axis, values) = METHODS[place]
    cells = []
    for task, _, _, examples, floor, ceiling in TASKS[:tasks]:
        top = floor + (ceiling - floor) * min(1.0, skill + chance.gauss(0, 0.015))
        trials = [top - abs(chance.gauss(0, 0.25 * (top - floor) + 0.01)) ** 1.2 for _ in range(7)] + [top]
        chance.shuffle(trials)
        noise = 0.4 / examples**0.5
        seeds = [top, *(top - abs(chance.gauss(0, noise)) for _ in range(2))]
        settings = {"learning_rate": chance.choice(RATES), axis: chance.choice(values)}
        cells.append(done_cell(task, name, trials, seeds, **settings))
    return method_row(
        name,
        cells,
        group,
        title=title,
        macro=statistics.fmean(cell.median or 0.0 for cell in cells),
        macro_tasks=tuple(cell.task for cell in cells),
        evp=tuple(statistics.fmean(values) for values in zip(*(cell.evp for cell in cells), strict=True)),
        trained_parameters=size / 4,
        stored_bytes=size,
        peak_memory_bytes=int(2.1e9 + 3 * size + 1e8 * chance.random()),
        train_seconds=300 + 400 * chance.random() + size / 1e6,
        ratio=ratio,
        ratio_low=ratio - 0.002 - 0.01 * chance.random(),
        ratio_high=ratio + 0.002 + 0.01 * chance.random(),
        variant="table" if name.startswith("aot") and name != "aot-hidden" else "",
        mixes=mixes,
    )


def unfinished(tasks: int = len(TASKS), methods: int = len(METHODS)) -> Summary:
    """A comparison cut short: the last task has not begun, others wait, failed or cannot be done."""
    whole = finished(tasks, methods)
    last = whole.tasks[-1].name
    kept = tuple(column.name for column in whole.tasks[:-1])
    rows = []
    for place, row in enumerate(whole.methods):
        cells = [*row.cells[:-1], empty_cell(last, row.name)]
        if row.name in ("prompt", "prefix"):
            cells = [
                empty_cell(cell.task, row.name, "not applicable", "PEFT has no multiple choice for it")
                if cell.task == "copa"
                else cell
                for cell in cells
            ]
        if place == 2:
            cells[3] = replace(cells[3], status="running", seed_scores=cells[3].seed_scores[:2])
            cells[4] = replace(
                cells[4], status="running", trials=cells[4].trials[:3], evp=cells[4].evp[:3], seed_scores=(),
                median=None, low=None, high=None,
            )  # fmt: skip
        if place == 4:
            cells[5] = replace(empty_cell(cells[5].task, row.name, "failed", "loss is not finite"), failed=8)
            cells[6] = replace(cells[6], trials=(None, *cells[6].trials[1:]), failed=1)
        complete = all(cell.median is not None for cell in cells[:-1])
        scores = [cell.median for cell in cells[:-1] if cell.median is not None]
        rows.append(
            replace(
                row,
                cells=tuple(cells),
                macro=statistics.fmean(scores) if complete else None,
                macro_tasks=kept if complete else (),
                evp=row.evp if complete else (),
                ratio=None if place in (3, 9) else row.ratio,
                ratio_low=None if place in (3, 9) else row.ratio_low,
                ratio_high=None if place in (3, 9) else row.ratio_high,
            )
        )
    return replace(
        whole,
        methods=tuple(rows),
        runs_done=whole.runs_planned * 7 // 10,
        notes=(*whole.notes, f"{last} is left out of the macro average: no method has finished it"),
    )


NASTY = (
    "<b>bold</b>",
    "a|b `code` **c**",
    "$x_1$ & 100 % #1 ~ ^ \\input{x} {",
    '--><script>alert("1")</script>',
    "[x] *y* _z_",
    "1. first",
    "é × µ – “quoted” ‘so’",
    "_underscore",
    "line\nbreak",
)


def nasty() -> Summary:
    """Names that mean something to Markdown, LaTeX, HTML, CSV, matplotlib or `rich`, and all kinds of scores."""
    columns = [TaskColumn(name, ("accuracy",), ("train",), 10) for name in NASTY]
    rows = []
    for place, name in enumerate(NASTY):
        score = place / 10 - 0.05
        cells = [done_cell(column.name, name, [score, None], [score, score + 0.01], rank=name) for column in columns]
        rows.append(
            method_row(
                name,
                cells,
                title=name,
                macro=score,
                macro_tasks=tuple(column.name for column in columns),
                evp=cells[0].evp,
                stored_bytes=1e5 * (place + 1),
                ratio=1.0 + place / 100,
                ratio_low=1.0,
                ratio_high=1.1,
                variant=name,
            )
        )
    return summary(columns, rows, notes=NASTY, backbone=NASTY[0], machines=NASTY, versions={NASTY[3]: NASTY[0]})

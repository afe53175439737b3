"""From records to what a reader wants to know: scores per task, macro averages, costs, search curves.

Arithmetic on `records`; knows nothing of files, tables and pictures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from peft_aot.methods import get_method

from .evp import expected_best
from .facts import TaskFacts
from .options import CompareOptions
from .plan import Plan, best_run
from .records import CostRecord, RunRecord


@dataclass(frozen=True)
class TaskColumn:
    """One task of a comparison.

    Attributes:
        name: The task's name.
        metrics: Names of its numbers, whose mean is the score.
        partial: Names of the splits of which official rows are missing; empty for the official set.
        train_examples: Examples trained on, 0 while unknown.
    """

    name: str
    metrics: tuple[str, ...]
    partial: tuple[str, ...]
    train_examples: int

    @property
    def label(self) -> str:
        """The name as every output shows it, with "(partial)" where official rows are missing."""
        return f"{self.name} (partial)" if self.partial else self.name


@dataclass(frozen=True)
class Cell:
    """One method on one task.

    Attributes:
        task: Name of the task.
        method: Name of the method.
        status: "done"; "running" (some runs are missing); "not run"; "not applicable"; "failed" (no run finished).
        reason: Why it is not applicable or failed.
        trials: Score of every search run that ended, in search order; None for a failed one. In [-1, 1].
        best_settings: The settings with the best score in the search, or None.
        seed_scores: Scores of the best settings, one per seed that ran.
        median: Median of `seed_scores`, or None.
        low: Their minimum, or None.
        high: Their maximum, or None.
        evp: Expected validation performance after 1, 2, ... trials (Dodge et al. 2019).
        failed: Number of failed runs.
        searched: Whether every run of the search has ended.
    """

    task: str
    method: str
    status: str
    reason: str
    trials: tuple[float | None, ...]
    best_settings: dict[str, Any] | None
    seed_scores: tuple[float, ...]
    median: float | None
    low: float | None
    high: float | None
    evp: tuple[float, ...]
    failed: int
    searched: bool = True


@dataclass(frozen=True)
class MethodRow:
    """One method over all tasks.

    Attributes:
        name: The method's name.
        title: For people.
        group: "ours" (this package's methods), "peft" (PEFT's), "reference" (full fine-tuning, head only) or "control".
        macro: Mean of the medians over `macro_tasks`, or None if this method lacks one of them.
        macro_tasks: The tasks that the macro average is taken over, the same for all methods that have one.
        evp: Mean over `macro_tasks` of the tasks' curves.
        trained_parameters: Median over tasks of the numbers trained by the best settings, or None.
        stored_bytes: Median over tasks of the bytes stored, without a fused table, or None.
        peak_memory_bytes: Largest over tasks, or None.
        train_seconds: Median over tasks, or None.
        ratio: Inference time over the bare backbone's, or None if it was not measured.
        ratio_low: First quartile.
        ratio_high: Third quartile.
        variant: How it was served for that ratio ("table" for fused AoT).
        mixes: What one batch may mix: "any heads", "adapters" (one head for all) or "no".
        cells: One per task, in the order of the tasks.
        points: Settings of the search's trials, in order.
    """

    name: str
    title: str
    group: str
    macro: float | None
    macro_tasks: tuple[str, ...]
    evp: tuple[float, ...]
    trained_parameters: float | None
    stored_bytes: float | None
    peak_memory_bytes: int | None
    train_seconds: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    variant: str
    mixes: str
    cells: tuple[Cell, ...]
    points: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Summary:
    """A whole comparison.

    Attributes:
        backbone: The backbone, for people.
        tasks: The tasks, in order.
        methods: The methods, in order.
        protocol: What all runs share, by name.
        trials: Search runs per method and task that were planned.
        seeds: Seeds of the best settings that were planned.
        runs_done: Runs finished, failed ones included.
        runs_planned: Runs planned.
        machines: Machines that ran them.
        versions: Package -> version.
        notes: What a reader must know: partial data, failures, ignored lines, tasks left out of the macro average.
    """

    backbone: str
    tasks: tuple[TaskColumn, ...]
    methods: tuple[MethodRow, ...]
    protocol: dict[str, Any]
    trials: int
    seeds: int
    runs_done: int
    runs_planned: int
    machines: tuple[str, ...]
    versions: dict[str, str]
    notes: tuple[str, ...]


def summarize(
    options: CompareOptions,
    plan: Plan,
    facts: Sequence[TaskFacts],
    runs: Sequence[RunRecord],
    costs: Sequence[CostRecord],
    notes: Sequence[str] = (),
) -> Summary:
    """Sum up a comparison, finished or not.

    Args:
        options: The comparison.
        plan: Its runs.
        facts: Its tasks.
        runs: Finished runs; others than the plan's are left out.
        costs: Measured inference times.
        notes: What else a reader must know.
    """
    tasks = tuple(
        TaskColumn(task.name, task.task.metrics, _partial(task, runs), len(task.train))
        for task in facts
        if task.name in plan.tasks
    )
    table = {name: tuple(_cell(plan, runs, task.name, name) for task in tasks) for name in plan.points}
    macro_tasks = _macro_tasks(tasks, table)
    rows = tuple(_row(name, cells, macro_tasks, plan, runs, costs) for name, cells in table.items())
    planned = {run.key for run in plan.search()}
    planned |= {
        (*run.key[:3], str(seed))
        for task, method in plan.pairs
        if (run := best_run(plan.records_of(runs, task, method)))
        for seed in range(plan.seeds)
    }
    counted = [record for record in runs if record.run.key in planned]
    return Summary(
        backbone=options.model.rstrip("/").rpartition("/")[2] or options.model,
        tasks=tasks,
        methods=rows,
        protocol=options.protocol(),
        trials=options.trials,
        seeds=options.seeds,
        runs_done=len(counted),
        runs_planned=plan.total
        - (plan.seeds - 1) * sum(plan.is_hopeless(runs, task, method) for task, method in plan.pairs),
        machines=_machines(counted, costs),
        versions=counted[-1].versions if counted else {},
        notes=(*notes, *_notes(tasks, rows, macro_tasks, plan), *_mixture(counted, costs)),
    )


def _partial(task: TaskFacts, runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """Splits of which rows are missing now, or were when a run was made."""
    return tuple(dict.fromkeys([*task.partial, *(name for r in runs if r.task == task.name for name in r.partial)]))


def _machines(runs: Sequence[RunRecord], costs: Sequence[CostRecord]) -> tuple[str, ...]:
    names = [*(record.machine for record in runs), *(record.machine for record in costs)]
    return tuple(dict.fromkeys(name for name in names if name))  # the record of a worker that died has none


def _mixture(runs: Sequence[RunRecord], costs: Sequence[CostRecord]) -> list[str]:
    """Say where the runs were not all made alike, so that a reader does not compare what does not compare."""
    notes = []
    if len(_machines(runs, costs)) > 1:
        notes.append("not all was measured on one machine: times and memory compare only in part")
    if len({record.precision for record in runs if record.precision}) > 1:
        notes.append("some runs were computed in fp32 and some in bf16")
    if len({tuple(sorted(record.versions.items())) for record in runs}) > 1:
        notes.append("the runs were made with different versions of packages; those named are the last run's")
    return notes


def _cell(plan: Plan, runs: Sequence[RunRecord], task: str, method: str) -> Cell:
    search = plan.records_of(runs, task, method)
    best = best_run(search)
    again = [] if best is None else [r for r in runs if r.run.key[:3] == best.key[:3] and r.seed < plan.seeds]
    seeds = tuple(_with_failures(sorted(again, key=lambda record: record.seed), runs))
    failures = [record for record in (*search, *(r for r in again if r.seed)) if record.status == "failed"]
    reason = plan.excluded.get((task, method), "")
    if reason:
        status = "not applicable"
    elif not search:
        status = "not run"
    elif len(search) < len(plan.points[method]) or (best is not None and len(again) < plan.seeds):
        status = "running"
    else:
        status = "failed" if best is None else "done"
    return Cell(
        task=task,
        method=method,
        status=status,
        reason=reason or (failures[-1].reason if failures else ""),
        trials=tuple(record.score for record in search),
        best_settings=None if best is None else best.settings,
        seed_scores=seeds,
        median=median(seeds) if seeds else None,
        low=min(seeds, default=None),
        high=max(seeds, default=None),
        evp=expected_best(_with_failures(search, runs)),
        failed=len(failures),
        searched=len(search) == len(plan.points[method]),
    )


def _with_failures(search: Sequence[RunRecord], runs: Sequence[RunRecord]) -> list[float]:
    """Scores of a search, in which a failed trial counts as the lowest score that anyone had on the task."""
    if not search:
        return []
    lowest = min((r.score for r in runs if r.task == search[0].task and r.score is not None), default=0.0)
    return [lowest if record.score is None else record.score for record in search]


def _macro_tasks(tasks: Sequence[TaskColumn], table: dict[str, tuple[Cell, ...]]) -> tuple[str, ...]:
    """Name the tasks on which every method has finished its search; those a method cannot do are left out for all."""
    return tuple(
        task.name
        for place, task in enumerate(tasks)
        if all(cells[place].median is not None and cells[place].searched for cells in table.values())
    )


def _row(
    name: str,
    cells: tuple[Cell, ...],
    macro_tasks: tuple[str, ...],
    plan: Plan,
    runs: Sequence[RunRecord],
    costs: Sequence[CostRecord],
) -> MethodRow:
    method = get_method(name)
    counted = [cell for cell in cells if cell.task in macro_tasks]
    medians = [cell.median for cell in counted if cell.median is not None]
    length = min((len(cell.evp) for cell in counted), default=0)
    best = [best_run(plan.records_of(runs, cell.task, name)) for cell in cells]
    keys = {run.key[:3] for run in best if run is not None}
    records = [record for record in runs if record.run.key[:3] in keys and record.status == "done"]
    timed = [record for record in costs if record.method == name]
    cost = next((record for record in timed if record.variant == "table"), timed[-1] if timed else None)
    return MethodRow(
        name=name,
        title=method.title,
        group=method.group,
        macro=mean(medians) if medians else None,
        macro_tasks=macro_tasks,
        evp=tuple(mean(cell.evp[n] for cell in counted) for n in range(length)),
        trained_parameters=median(r.trained_parameters for r in records) if records else None,
        stored_bytes=median(r.stored_bytes for r in records) if records else None,
        peak_memory_bytes=max((r.peak_memory_bytes or 0 for r in records), default=0) or None,
        train_seconds=median(r.train_seconds for r in records) if records else None,
        ratio=cost.ratio if cost else None,
        ratio_low=cost.ratio_low if cost else None,
        ratio_high=cost.ratio_high if cost else None,
        variant=cost.variant if cost else "",
        mixes=method.mixes,
        cells=cells,
        points=tuple(plan.points[name]),
    )


def _notes(
    tasks: Sequence[TaskColumn], rows: Sequence[MethodRow], macro_tasks: tuple[str, ...], plan: Plan
) -> Sequence[str]:
    notes = [
        f"{task.name}: official rows are missing in {' and '.join(task.partial)}; not the official set's score"
        for task in tasks
        if task.partial
    ]
    if left_out := [task.name for task in tasks if task.name not in macro_tasks]:
        notes.append(f"the macro average leaves out {', '.join(left_out)}, on which not every method has a score")
    notes += [
        f"{row.title} cannot do {', '.join(names)}"
        for row in rows
        if (names := [cell.task for cell in row.cells if cell.status == "not applicable"])
    ]
    notes += [
        f"{cell.failed} failed {'run' if cell.failed == 1 else 'runs'} of {row.title} on {cell.task}: {cell.reason}"
        for row in rows
        for cell in row.cells
        if cell.failed
    ]
    if plan.seeds > 1:
        notes.append(
            "the median over seeds includes the seed that the search was made with, which favours every method"
        )
    return notes

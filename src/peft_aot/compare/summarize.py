"""From records to a `Summary`. Arithmetic only; knows nothing of files, tables and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import mean, median

from peft_aot.methods import get_method
from peft_aot.task import LOCAL_HOLDOUT, LocalFiles, Task

from .evp import expected_best
from .facts import TaskFacts
from .options import CompareOptions
from .plan import Plan, best_run
from .records import CostRecord, RunRecord
from .summary import Cell, MethodRow, Summary, TaskColumn


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
        runs: Finished runs; others than the plan's are left out, and of several records of one the last counts.
        costs: Measured inference times.
        notes: What else a reader must know.
    """
    runs = list({record.run.key: record for record in runs}.values())
    tasks = tuple(
        TaskColumn(task.name, _numbers(task, runs), _partial(task, runs), len(task.train), _scored(task.task))
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


def _numbers(task: TaskFacts, runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """Names of what a task's score is the mean of; a metric of several numbers shows them only once it has run."""
    return next((tuple(run.scores) for run in runs if run.task == task.name and run.scores), task.task.metrics)


def _scored(task: Task) -> str:
    """Say in words which rows the scores are of."""
    source = task.source
    if isinstance(source, LocalFiles):
        return "the validation file" if source.validation else f"one row in {LOCAL_HOLDOUT}, held out"
    return f"one row in {source.holdout}, held out" if source.holdout else f"the {source.validation} split"


def _partial(task: TaskFacts, runs: Sequence[RunRecord]) -> tuple[str, ...]:
    """Splits of which rows are missing now, or were when a run was made."""
    return tuple(dict.fromkeys([*task.partial, *(name for r in runs if r.task == task.name for name in r.partial)]))


def _machines(runs: Sequence[RunRecord], costs: Sequence[CostRecord]) -> tuple[str, ...]:
    names = [*(record.machine for record in runs), *(record.machine for record in costs)]
    return tuple(dict.fromkeys(name for name in names if name))  # the record of a worker that died has none


def _mixture(runs: Sequence[RunRecord], costs: Sequence[CostRecord]) -> list[str]:
    """Say where the runs were not all made alike, so that a reader does not compare what does not compare."""
    notes = []
    machines = _machines(runs, costs)
    if len({name.rpartition(", ")[0] or name for name in machines}) > 1:
        notes.append("not all was measured on one machine: times and memory compare only in part")
    elif len(machines) > 1:
        notes.append("not all was measured with as many threads: times compare only in part")
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
    """Name the tasks on which every method has finished its search, and one has a score.

    Those a method cannot do are left out for all; those in which all of a method's runs failed are not.
    """
    columns = {task.name: [cells[place] for cells in table.values()] for place, task in enumerate(tasks)}
    return tuple(
        name
        for name, cells in columns.items()
        if any(cell.median is not None for cell in cells)
        and all(cell.status == "failed" or (cell.median is not None and cell.searched) for cell in cells)
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
    # the curve of a search in which everything failed is the task's lowest score throughout
    scores = [cell.evp[-1] if cell.median is None else cell.median for cell in counted]
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
        macro=mean(scores) if scores else None,
        macro_tasks=macro_tasks,
        evp=tuple(mean(cell.evp[n] for cell in counted) for n in range(length)),
        trained_parameters=median(r.trained_parameters for r in records) if records else None,
        stored_bytes=median(r.stored_bytes for r in records) if records else None,
        peak_memory_bytes=_peak_memory(records),
        train_seconds=median(r.train_seconds for r in records) if records else None,
        ratio=cost.ratio if cost else None,
        ratio_low=cost.ratio_low if cost else None,
        ratio_high=cost.ratio_high if cost else None,
        variant=cost.variant if cost else "",
        mixes=method.mixes,
        cells=cells,
        points=tuple(plan.points[name]),
    )


def _peak_memory(records: Sequence[RunRecord]) -> int | None:
    """The highest over tasks of the lowest of a task's runs: libraries' caches, filled on the way, only ever add."""
    found: dict[str, int] = {}
    for record in records:
        if record.peak_memory_bytes:
            found[record.task] = min(record.peak_memory_bytes, found.get(record.task, record.peak_memory_bytes))
    return max(found.values(), default=None)


def _notes(
    tasks: Sequence[TaskColumn], rows: Sequence[MethodRow], macro_tasks: tuple[str, ...], plan: Plan
) -> Sequence[str]:
    notes = []
    for partial in dict.fromkeys(task.partial for task in tasks if task.partial):
        names = [task.name for task in tasks if task.partial == partial]
        missing = " and ".join(partial)
        notes.append(f"{', '.join(names)}: official rows are missing in {missing}; not the official set's score")
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
    notes += [
        f"every search run of {row.title} on {', '.join(names)} failed, which counts as the lowest score there in the "
        "macro average"
        for row in rows
        if (names := [cell.task for cell in row.cells if cell.status == "failed" and cell.task in macro_tasks])
    ]
    if plan.seeds > 1:
        notes.append(
            "the median over seeds includes the seed that the search was made with, which favours every method"
        )
    return notes

"""A comparison from beginning to end: check everything, foresee the cost, run what is missing, measure, report.

Whatever is finished stands in files below `options.output`, so that a comparison that was killed goes on where it was:

    runs.jsonl     one line per training run
    costs.jsonl    one line per inference timing
    report/        tables, pictures and a page, written anew from the two files
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import filelock
from transformers import AutoConfig

from peft_aot.loading import load_tokenizer
from peft_aot.method import configure
from peft_aot.methods import get_method
from peft_aot.progress import Progress
from peft_aot.task import Kind

from .cost import measure_cost
from .earlier import check_earlier
from .estimate import Estimate, Estimator, measure_speeds
from .executor import Executor
from .facts import TaskFacts, gather
from .local import run_here
from .options import CompareOptions
from .plan import Plan, best_run
from .records import CostRecord, RecordFile, Run, RunRecord
from .report.write import write_report
from .space import check_methods, request_of, search_points
from .summarize import summarize
from .summary import Summary

RUNS, COSTS, REPORT, LOCK = "runs.jsonl", "costs.jsonl", "report", ".lock"


class View:
    """What is told of a running comparison; this one keeps silent."""

    def note(self, text: str) -> None:
        """Something that a reader should know."""

    def step(self, text: str) -> None:
        """What is being prepared or measured."""

    def begin(self, plan: Plan, records: Sequence[RunRecord], estimate: Estimate) -> None:
        """The runs begin."""

    def started(self, run: Run) -> None:
        """A run begins."""

    def progress(self, run: Run, progress: Progress) -> None:
        """How a run goes."""

    def finished(self, record: RunRecord, left: Estimate) -> None:
        """A run has ended, and is on disk."""


@dataclass(frozen=True)
class _Keeper:
    """Puts every finished run on disk, then tells the view."""

    plan: Plan
    runs: RecordFile[RunRecord]
    estimator: Estimator
    view: View

    def started(self, run: Run) -> None:
        self.view.started(run)

    def progress(self, run: Run, progress: Progress) -> None:
        self.view.progress(run, progress)

    def finished(self, record: RunRecord) -> None:
        if rows := self.estimator.facts[record.task].rows:
            record = replace(record, protocol={**record.protocol, "rows": rows})
        self.runs.append(record)
        self.view.finished(record, self.estimator.estimate(self.plan, self.runs.records))


@dataclass(frozen=True)
class CompareResult:
    """What a comparison left.

    Attributes:
        summary: Scores, costs, curves.
        files: The report.
        estimate: What was foreseen before the first run.
    """

    summary: Summary
    files: tuple[Path, ...]
    estimate: Estimate | None


def compare(
    options: CompareOptions,
    view: View | None = None,
    executor: Executor = run_here,
    estimate_only: bool = False,
    report_only: bool = False,
) -> CompareResult:
    """Compare methods on tasks.

    Args:
        options: What is compared.
        view: Told how it goes.
        executor: Where runs are executed.
        estimate_only: Foresee time and memory; run nothing and write nothing.
        report_only: Write the report from what is finished, and run nothing.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: Bad input, found before anything was changed.
        FileExistsError: Another comparison writes to the directory.
        KeyboardInterrupt: Stopped; what was finished is kept, and the report is written from it.
    """
    view = view or View()
    facts, plan = prepare(options)
    if report_only and not (options.output / RUNS).is_file():
        raise FileNotFoundError(
            f"expected the runs of a comparison in {options.output}, got no {RUNS}; pass the output of one that has run"
        )
    with nullcontext() if estimate_only else _locked(options.output):
        runs = RecordFile(options.output / RUNS, RunRecord)
        costs = RecordFile(options.output / COSTS, CostRecord)
        check_earlier(options, facts, runs.records, costs.records)
        for text in (*runs.notes, *costs.notes):
            view.note(text)

        def summed() -> Summary:
            return summarize(options, plan, facts, runs.records, costs.records, (*runs.notes, *costs.notes))

        def report() -> tuple[Summary, tuple[Path, ...]]:
            return (summary := summed()), write_report(summary, options.output / REPORT)

        if report_only:
            return CompareResult(*report(), None)
        speeds, refused = measure_speeds(options, plan, facts, lambda name: view.step(f"measuring the speed of {name}"))
        plan = plan.without(refused)
        _check_possible(plan)
        estimator = Estimator(options, facts, speeds)
        estimate = estimator.estimate(plan, runs.records)
        view.begin(plan, runs.records, estimate)
        if estimate_only:
            return CompareResult(summed(), (), estimate)

        keeper = _Keeper(plan, runs, estimator, view)
        try:
            while startable := plan.startable(runs.records):
                executor(options, startable, keeper)
            if options.timing_rounds:
                _measure_costs(options, plan, facts, runs, costs, view)
        finally:
            summary, files = report()
        return CompareResult(summary, files, estimate)


def prepare(options: CompareOptions) -> tuple[list[TaskFacts], Plan]:
    """Find everything that can be wrong with a comparison, and plan it; nothing is changed.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: Bad input; the message says what to do.
    """
    methods = [get_method(name) for name in options.methods]
    check_methods(options.spaces, options.methods)
    tokenizer = load_tokenizer(options.model)
    config = AutoConfig.from_pretrained(options.model)
    room = min(getattr(config, "max_position_embeddings", None) or 10**6, tokenizer.model_max_length)
    points = {
        method.name: search_points(
            method, options.spaces.get(method.name, {}), options.trials, str(config.model_type), room
        )
        for method in methods
    }
    virtual = [p.get("virtual_tokens", 20) for m in methods if m.virtual_tokens for p in points[m.name]]
    longest = room - max(virtual, default=0)
    if options.max_length is not None and options.max_length > longest:
        raise ValueError(
            f"expected max_length of at most {longest} (the backbone's {room} positions less the virtual tokens of the "
            f"methods compared), got {options.max_length}; pass a smaller max_length"
        )
    facts = gather(options, tokenizer)
    excluded = {}
    for task in facts:
        for name, tried in points.items():
            if reason := _cannot(name, tried[0], str(config.model_type), task.task.kind):
                excluded[task.name, name] = reason
    plan = Plan(tuple(task.name for task in facts), points, excluded, options.seeds)
    _check_possible(plan)
    return facts, plan


def _check_possible(plan: Plan) -> None:
    """Refuse a plan in which nothing can run."""
    if not plan.pairs:
        raise ValueError(
            f"expected a method that can do one of the tasks {', '.join(plan.tasks)}, got {', '.join(plan.points)} "
            f"({'; '.join(dict.fromkeys(plan.excluded.values()))}); add another method or another task"
        )


def _cannot(name: str, point: dict[str, Any], model_type: str, kind: Kind) -> str:
    try:
        configure(get_method(name), request_of(point, model_type, kind, ("classifier",)))
    except ValueError as error:
        return str(error)
    return ""


@contextmanager
def _locked(output: Path) -> Iterator[None]:
    if output.exists() and not output.is_dir():
        raise FileExistsError(f"expected a directory as output, got the file {output}; choose another path")
    output.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(output / LOCK)
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout as error:
        raise FileExistsError(
            f"expected a directory that no other comparison writes to, got {output}, which one is writing to; wait for "
            "it, or pass another output"
        ) from error
    try:
        yield
    finally:
        lock.release()


def _measure_costs(
    options: CompareOptions,
    plan: Plan,
    facts: Sequence[TaskFacts],
    runs: RecordFile[RunRecord],
    costs: RecordFile[CostRecord],
    view: View,
) -> None:
    variants = {name: {r.variant for r in costs.records if r.method == name} for name in plan.points}
    measured = {name for name, found in variants.items() if found and found != {"factors"}}  # not half of AoT's
    readable = [task for task in facts if task.task.kind != "multiple_choice"]
    for name, tried in plan.points.items():
        if name in measured or all((task.name, name) in plan.excluded for task in readable):
            continue
        best = [best_run(plan.records_of(runs.records, task.name, name)) for task in readable]
        settings = next((run.settings for run in reversed(best) if run is not None), tried[0])
        view.step(f"timing {name} beside the bare backbone, {options.timing_rounds} rounds")
        for record in measure_cost(options, name, settings, readable[-1].items):
            costs.append(record)

"""`peft-aot compare`: how a comparison looks in a terminal. What it does stands in `peft_aot.compare`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import typer
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import peft_aot.compare as comparing
from peft_aot.cli.own_files import own_files
from peft_aot.cli.quiet import quiet_libraries
from peft_aot.compare import CompareOptions, CompareResult, View
from peft_aot.compare.estimate import Estimate
from peft_aot.compare.executor import Executor
from peft_aot.compare.local import run_here
from peft_aot.compare.options import CONTROLS, DEFAULT_METHODS
from peft_aot.compare.plan import Plan
from peft_aot.compare.records import Run, RunRecord
from peft_aot.compare.report.terminal import TerminalTable
from peft_aot.compare.space import head_rate_axes, parse_spaces
from peft_aot.compare.termination import sigterm_as_interrupt
from peft_aot.progress import Progress as Report
from peft_aot.sizes import counted, format_bytes
from peft_aot.task import LocalFiles

INTERRUPTED = 130
TERMINATED = 143


def compare(
    model: Annotated[str, typer.Option(help="Hub id or local path of the backbone.")],
    output: Annotated[Path, typer.Option(help="Directory for runs and report; a comparison found there goes on.")],
    tasks: Annotated[str, typer.Option(help="Known tasks, separated by commas: rte,cola,trec.")] = "",
    methods: Annotated[
        str,
        typer.Option(
            help=f"Methods, separated by commas. All: {', '.join((*DEFAULT_METHODS, *CONTROLS))}.",
            show_default=f"all but {', '.join(CONTROLS)}",
        ),
    ] = ",".join(DEFAULT_METHODS),
    data_dir: Annotated[Path | None, typer.Option(help="Folder in hub layout to read instead of the hub.")] = None,
    train_file: Annotated[Path | None, typer.Option(help="CSV, TSV, JSONL or parquet file of an own task.")] = None,
    validation_file: Annotated[Path | None, typer.Option(help="File to score it on; else every 10th row.")] = None,
    text_column: Annotated[str, typer.Option(help="Column of its text.")] = "text",
    pair_column: Annotated[str | None, typer.Option(help="Column of its second text.")] = None,
    label_column: Annotated[str, typer.Option(help="Column of its label.")] = "label",
    regression: Annotated[bool, typer.Option(help="Its labels are numbers to predict.")] = False,
    trials: Annotated[int, typer.Option(help="Search runs per method and task.")] = 8,
    seeds: Annotated[int, typer.Option(help="Runs of the best settings; the score is their median.")] = 3,
    epochs: Annotated[float, typer.Option(help="Most passes over a training set.")] = 5.0,
    patience: Annotated[int, typer.Option(help="Epochs without a better score before a run stops; 0 never.")] = 2,
    batch_size: Annotated[int, typer.Option(help="Examples per step.")] = 32,
    max_length: Annotated[int | None, typer.Option(help="Longest input in tokens; else each task's.")] = None,
    precision: Annotated[Literal["auto", "fp32", "bf16"], typer.Option(help="Arithmetic.")] = "auto",
    limit_train: Annotated[int | None, typer.Option(help="Use only so many training examples per task.")] = None,
    limit_validation: Annotated[int | None, typer.Option(help="Use only so many validation examples.")] = None,
    space: Annotated[
        list[str] | None, typer.Option(help="An axis of a search space, as aot.learning_rate=1e-3,3e-3; repeatable.")
    ] = None,
    head_learning_rate: Annotated[
        float | None, typer.Option(help="Of the head, under every method; else it learns at the rate of the rest.")
    ] = None,
    timing_rounds: Annotated[int, typer.Option(help="Rounds of the inference timing; 0 leaves it out.")] = 30,
    estimate_only: Annotated[
        bool, typer.Option("--estimate-only", help="Foresee time and memory; run nothing.")
    ] = False,
    report_only: Annotated[bool, typer.Option("--report-only", help="Write the report from what is finished.")] = False,
    ray: Annotated[
        bool, typer.Option("--ray", help="Run in parallel through Ray Tune, started on this machine.")
    ] = False,
    ray_address: Annotated[str | None, typer.Option(help="Run on a Ray cluster: host:6379, or auto.")] = None,
    ray_cpus: Annotated[int, typer.Option(help="Cores for each run on Ray.")] = 1,
    ray_gpus: Annotated[
        float | None,
        typer.Option(help="Accelerators for each run on Ray, maybe a fraction; else one if there are any."),
    ] = None,
) -> None:
    """Compare methods on tasks: search, seeds, costs; a table, pictures and a page.

    Every finished run is kept in OUTPUT/runs.jsonl: Ctrl-C, SIGTERM or a crash loses the run in progress only, and
    the same command goes on from there.
    """
    quiet_libraries()
    spaces: dict[str, dict[str, tuple[Any, ...]]] = {}
    if head_learning_rate is not None:
        spaces = head_rate_axes(_names(methods), head_learning_rate)
    for method, axes in parse_spaces(space or ()).items():
        spaces[method] = {**spaces.get(method, {}), **axes}
    chosen: list[str | LocalFiles] = list(_names(tasks))
    if train_file is None:
        _refuse_alone(
            {
                "--validation-file": validation_file is not None,
                "--text-column": text_column != "text",
                "--pair-column": pair_column is not None,
                "--label-column": label_column != "label",
                "--regression": regression,
            }
        )
    else:
        chosen.append(own_files(train_file, validation_file, text_column, pair_column, label_column, regression))
    if not chosen:
        raise ValueError("expected --tasks, --train-file or both, got neither; name what to compare on")
    options = CompareOptions(
        model=model,
        output=output,
        tasks=tuple(chosen),
        methods=_names(methods),
        data_dir=data_dir,
        trials=trials,
        seeds=seeds,
        epochs=epochs,
        patience=patience or None,
        batch_size=batch_size,
        max_length=max_length,
        precision=precision,
        limit_train=limit_train,
        limit_validation=limit_validation,
        spaces=spaces,
        timing_rounds=timing_rounds,
    )
    console = Console()
    with sigterm_as_interrupt() as terminated:
        try:
            with _live(console) as view:
                executor = _executor(ray, ray_address, ray_cpus, ray_gpus)
                result = comparing.compare(options, view, executor, estimate_only, report_only)
        except KeyboardInterrupt:
            console.print(f"stopped; what is finished is in {output}, and the same command goes on", soft_wrap=True)
            raise typer.Exit(TERMINATED if terminated else INTERRUPTED) from None
    _summarize(console, result, estimate_only)


def _refuse_alone(given: dict[str, bool]) -> None:
    """Refuse options that describe an own file where there is none."""
    if names := [name for name, is_given in given.items() if is_given]:
        raise ValueError(
            f"expected --train-file beside {', '.join(names)}, got none; name the file that they describe, or leave "
            "them out"
        )


def _names(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _executor(ray: bool, address: str | None, cpus: int, gpus: float | None) -> Executor:
    if not ray and address is None:
        return run_here
    try:
        from peft_aot.compare.on_ray import RayExecutor
    except ImportError as error:  # says what to install
        raise ValueError(str(error)) from error
    return RayExecutor(address, cpus, gpus)


class _View(View):
    """Shows a running comparison: what is foreseen, the best so far, the run in progress, the time left."""

    def __init__(self, console: Console, live: Live) -> None:
        self._console = console
        self._live = live
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=30),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[facts]}"),
            console=console,
        )
        self._whole = self._bars.add_task("preparing", total=None, facts="")
        self._current = self._bars.add_task("", total=None, facts="", visible=False)
        self._plan: Plan | None = None
        self._best: dict[tuple[str, str], float] = {}
        self._draw()

    def note(self, text: str) -> None:
        self._print(f"[yellow]note:[/] {escape(text)}")

    def step(self, text: str) -> None:
        self._bars.update(self._whole, description=text)

    def begin(self, plan: Plan, records: Sequence[RunRecord], estimate: Estimate) -> None:
        self._plan = plan
        for record in records:
            self._remember(record)
        trials = len(next(iter(plan.points.values())))
        self._print(
            f"{counted(len(plan.tasks), 'task')} x {counted(len(plan.points), 'method')} x {counted(trials, 'trial')}, "
            f"the best with {counted(plan.seeds, 'seed')}: {counted(plan.total, 'run')}, "
            f"{plan.total - estimate.runs} of them finished"
        )
        self._print(
            f"expected: about {duration(estimate.seconds)} for the rest, one after the other on this machine, in up to "
            f"{format_bytes(estimate.memory_bytes)} of memory"
        )
        for method, reason in dict.fromkeys((method, reason) for (_, method), reason in plan.excluded.items()):
            tasks = [task for task in plan.tasks if plan.excluded.get((task, method)) == reason]
            self.note(f"{method} does not run on {', '.join(tasks)}: {reason}")
        done = plan.total - estimate.runs
        self._bars.update(self._whole, description="all runs", total=plan.total, completed=done)
        self._draw()

    def started(self, run: Run) -> None:
        self._bars.reset(self._current, description=describe(run), total=None, facts="loading", visible=True)

    def progress(self, run: Run, progress: Report) -> None:
        facts = [f"epoch {progress.epoch:.2f}"]
        if progress.loss is not None:
            facts.append(f"loss {progress.loss:.3f}")
        if progress.score is not None:
            facts.append(f"score {100 * progress.score:.1f}")
        self._bars.update(
            self._current,
            description=describe(run),
            completed=progress.step,
            total=progress.total_steps,
            facts=", ".join(facts),
        )

    def finished(self, record: RunRecord, left: Estimate) -> None:
        self._remember(record)
        score = "failed: " + record.reason if record.score is None else f"{100 * record.score:.2f}"
        self._print(f"{describe(record.run)}: {escape(score)}, {record.train_seconds:.0f} s")
        if self._plan is not None:
            self._bars.update(
                self._whole,
                completed=self._plan.total - left.runs,
                facts=f"about {duration(left.seconds)} left" if left.runs else "",
            )
        self._bars.update(self._current, visible=False)
        self._draw()

    def _remember(self, record: RunRecord) -> None:
        if record.score is not None:
            key = (record.task, record.method)
            self._best[key] = max(record.score, self._best.get(key, record.score))

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)

    def _draw(self) -> None:
        parts: list[RenderableType] = [self._bars]
        if self._plan is not None:
            table = Table("best so far", *self._plan.tasks)
            for method in self._plan.points:
                found = [self._best.get((task, method)) for task in self._plan.tasks]
                table.add_row(method, *("" if score is None else f"{100 * score:.1f}" for score in found))
            parts.insert(0, table)
        self._live.update(Group(*parts))


def describe(run: Run) -> str:
    """Name a run in a line."""
    settings = " ".join(
        f"{name}={value:g}" if isinstance(value, float) else f"{name}={value}" for name, value in run.settings.items()
    )
    return escape(f"{run.task} {run.method} {settings}{f' seed={run.seed}' if run.seed else ''}")


def duration(seconds: float) -> str:
    """Say a time in the units that people think in."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


@contextmanager
def _live(console: Console) -> Iterator[View]:
    with Live(console=console, refresh_per_second=4, transient=True) as live:
        yield _View(console, live)


def _summarize(console: Console, result: CompareResult, estimate_only: bool) -> None:
    if estimate_only and result.estimate is not None:
        return  # the view has said it
    console.print(TerminalTable(result.summary))
    for file in result.files:
        console.print(escape(str(file)), soft_wrap=True, highlight=False)

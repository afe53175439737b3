"""`peft-aot demo`: how the demo looks in a terminal. What it does stands in `peft_aot.demo.journey`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

from peft_aot.cli.quiet import quiet_libraries
from peft_aot.demo.data import TASKS, DemoTask, Sizes, TaskData
from peft_aot.demo.finished import Run
from peft_aot.demo.journey import DemoOptions, DemoResult, run_demo
from peft_aot.demo.questions import SENTENCES, Answers, parse_question
from peft_aot.demo.report import COLUMNS, conditions, table_cells
from peft_aot.demo.results import Comparison
from peft_aot.progress import Progress as Report
from peft_aot.progress import ProgressCallback
from peft_aot.sizes import format_bytes

INTERRUPTED = 130
PLAIN_SECONDS = 5.0  # between two lines of progress where there is no terminal to draw a bar in


def demo(
    output_dir: Annotated[Path, typer.Option(help="Directory that receives everything the demo makes.")] = Path(
        "peft-aot-demo"
    ),
    model: Annotated[
        str | None, typer.Option(help="Hub id or local path of the backbone, instead of the carried MiniLM-L6.")
    ] = None,
    train_examples: Annotated[int, typer.Option(min=50, help="Most training examples per task.")] = Sizes().train,
    epochs: Annotated[float, typer.Option(min=0.1, help="Passes over them.")] = DemoOptions(Path()).epochs,
    ask: Annotated[
        list[str] | None,
        typer.Option(help="A sentence for the mixed batch, as 'TASK: SENTENCE'; may be given several times."),
    ] = None,
    comparison: Annotated[bool, typer.Option(help="Also train and measure the other methods.")] = True,
    restart: Annotated[bool, typer.Option("--restart", help="Do everything again, whatever is finished.")] = False,
) -> None:
    """Train three real tasks with AoT, answer a mixed batch, and compare with other methods.

    The data and the backbone come from installed packages that carry them (requirements-demo.txt), else from the hub.
    What is finished is not done again: an interrupted demo goes on where it stopped.
    """
    quiet_libraries()
    console = Console()
    start = time.perf_counter()
    questions = tuple(parse_question(text, tuple(task.name for task in TASKS)) for text in ask or ())
    options = DemoOptions(
        output_dir,
        model,
        replace(Sizes(), train=train_examples),
        epochs,
        questions=questions or SENTENCES,
        comparison=comparison,
        restart=restart,
    )
    try:
        with _live(console) as view:
            result = run_demo(options, view)
    except KeyboardInterrupt:
        console.print("stopped; the same command goes on where it stopped")
        raise typer.Exit(INTERRUPTED) from None
    _summarize(console, result, options, time.perf_counter() - start)


class _View:
    """Shows a running demo."""

    def __init__(self, console: Console, progress: Progress) -> None:
        self._console = console
        self._progress = progress
        self._current: TaskID | None = None

    def found(self, data: TaskData) -> None:
        used, available = data.used, data.available
        self._print(
            f"[bold]{data.task.title}[/]: {used['train']:,} of {available['train']:,} training examples, "
            f"{used['validation']:,} of {available['validation']:,} validation, {used['test']:,} of "
            f"{available['test']:,} test, from {data.origin}"
        )

    def skipped(self, task: DemoTask, reason: str) -> None:
        self._print(f"[yellow]skipped[/] {task.name}: {escape(reason)}")

    def training(self, title: str) -> ProgressCallback:
        self._finish()
        self._current = bar = self._progress.add_task(title, total=None, facts="loading")
        said = 0.0

        def on_progress(report: Report) -> None:
            nonlocal said
            facts = [f"step {report.step}/{report.total_steps}"]
            if report.loss is not None:
                facts.append(f"loss {report.loss:.3f}")
            if report.score is not None:
                facts.append(f"validation {report.score:.1%}")
            if report.seconds_left is not None:
                facts.append(f"{report.seconds_left:.0f} s left")
            self._progress.update(bar, completed=report.step, total=report.total_steps, facts=", ".join(facts))
            if not self._console.is_terminal and report.seconds - said >= PLAIN_SECONDS:
                said = report.seconds
                self._print(f"  {title}: {', '.join(facts)}")

        return on_progress

    def trained(self, title: str, run: Run, reused: bool) -> None:
        self._finish()
        when = "trained earlier" if reused else f"trained in {run.train_seconds:.0f} s"
        self._print(
            f"[green]done[/] {title}: validation {run.score:.1%}, {run.trainable_parameters:,} numbers trained, "
            f"{format_bytes(run.stored_bytes)} stored, {when}"
        )

    def step(self, text: str) -> None:
        self._finish()
        self._current = self._progress.add_task(text, total=None, facts="")

    def answered(self, answers: Answers) -> None:
        self._finish()
        table = Table("text", "task", "label", "probability", title="One mixed batch, answered by a fresh process")
        table.columns[3].justify = "right"
        for one in answers.answers:
            table.add_row(escape(one.text), one.task, f"[bold]{escape(one.label)}[/]", f"{one.probability:.1%}")
        self._console.print(table)
        self._print(
            f"process {answers.pid}: one backbone and {len({one.task for one in answers.answers})} adapters loaded in "
            f"{answers.load_seconds:.1f} s ({format_bytes(answers.table_bytes)} of fused tables mapped), "
            f"{len(answers.answers)} sentences answered in one batch in {answers.batch_milliseconds:.0f} ms; no "
            f"probability differs by more than {answers.alone_difference:.0e} from the same sentence asked alone"
        )

    def compared(self, comparison: Comparison) -> None:
        self._finish()
        table = Table(title="AoT P-Tuning beside other methods", box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        for i, column in enumerate(COLUMNS):
            table.add_column(column, justify="right" if i else "left", no_wrap=True)
        for row in comparison.rows:
            table.add_row(*table_cells(row), style="bold" if row.ours else "")
        self._console.print(table)
        for sentence in conditions(comparison):
            self._print(f"[dim]- {escape(sentence)}[/]")

    def _print(self, text: str) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)

    def _finish(self) -> None:
        if self._current is not None:
            self._progress.remove_task(self._current)
            self._current = None


@contextmanager
def _live(console: Console) -> Iterator[_View]:
    progress = Progress(
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        TextColumn("{task.fields[facts]}"),
        console=console,
        transient=True,
    )
    with progress:
        yield _View(console, progress)


def _summarize(console: Console, result: DemoResult, options: DemoOptions, seconds: float) -> None:
    console.print(f"[green]finished[/] in {seconds:.0f} s, on {result.model}", soft_wrap=True, highlight=False)
    for path in result.files:
        console.print(f"  {path}", soft_wrap=True, highlight=False)
    console.print(f"  {options.output / 'adapters'}: one adapter per task, tables included", highlight=False)
    if not result.files or result.files[-1].suffix != ".png":
        console.print('  no picture: pip install "peft_aot[plots]" draws one', highlight=False)
    console.print(
        f"ask it something else: peft-aot demo --no-comparison --output-dir {options.output} "
        f'--ask "{next(iter(result.runs))}: your sentence"',
        soft_wrap=True,
        highlight=False,
    )

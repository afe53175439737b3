"""`peft-aot train`: options from a terminal, a progress bar, a table at the end. The work is `peft_aot.train`'s."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import peft_aot.train as training
from peft_aot.cli.own_files import own_files
from peft_aot.cli.quiet import quiet_libraries
from peft_aot.methods import method_names
from peft_aot.progress import Progress as Report
from peft_aot.progress import ProgressCallback, TrainingInterrupted
from peft_aot.task import LocalFiles

INTERRUPTED = 130


def train(
    model: Annotated[str, typer.Option(help="Hub id or local path of the backbone.")],
    output: Annotated[Path, typer.Option(help="Directory that receives the adapter.")],
    task: Annotated[str | None, typer.Option(help="A known task, such as rte, boolq or trec.")] = None,
    method: Annotated[str, typer.Option(help=f"One of {', '.join(method_names())}.")] = "aot",
    data_dir: Annotated[Path | None, typer.Option(help="Folder in hub layout to read instead of the hub.")] = None,
    train_file: Annotated[Path | None, typer.Option(help="CSV, TSV, JSONL or parquet file of an own task.")] = None,
    validation_file: Annotated[Path | None, typer.Option(help="File to score on; else every 10th row.")] = None,
    text_column: Annotated[str, typer.Option(help="Column of the text.")] = "text",
    pair_column: Annotated[str | None, typer.Option(help="Column of a second text.")] = None,
    label_column: Annotated[str, typer.Option(help="Column of the label.")] = "label",
    regression: Annotated[bool, typer.Option(help="Labels of the own task are numbers to predict.")] = False,
    epochs: Annotated[float, typer.Option(help="Passes over the training set.")] = 3.0,
    max_steps: Annotated[int | None, typer.Option(help="Stop after this many steps.")] = None,
    batch_size: Annotated[int, typer.Option(help="Examples per step.")] = 16,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate; else the method's.")] = None,
    head_learning_rate: Annotated[float | None, typer.Option(help="Of the head; else that of the rest.")] = None,
    max_length: Annotated[int | None, typer.Option(help="Longest input in tokens; else the task's.")] = None,
    rank: Annotated[int | None, typer.Option(help="Rank of AoT and LoRA; else the method's.")] = None,
    virtual_tokens: Annotated[int, typer.Option(help="Length of a prompt or prefix.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    precision: Annotated[Literal["auto", "fp32", "bf16"], typer.Option(help="Arithmetic.")] = "auto",
    limit_train: Annotated[int | None, typer.Option(help="Use only so many training examples.")] = None,
    limit_validation: Annotated[int | None, typer.Option(help="Use only so many validation examples.")] = None,
    fuse: Annotated[bool, typer.Option(help="Write the lookup table of an AoT adapter too.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what the output holds.")] = False,
) -> None:
    """Train one task on one backbone with one method.

    Ctrl-C stops after the step that is running and saves; the same command with --resume goes on from there.
    """
    quiet_libraries()
    if (task is None) == (train_file is None):
        raise ValueError(
            f"expected either --task or --train-file, got {'neither' if task is None else 'both'}; pass one of them"
        )
    what: str | LocalFiles = task or ""
    if train_file is not None:
        what = own_files(train_file, validation_file, text_column, pair_column, label_column, regression)
    options = training.TrainOptions(
        task=what,
        model=model,
        output=output,
        method=method,
        data_dir=data_dir,
        epochs=epochs,
        max_steps=max_steps,
        batch_size=batch_size,
        learning_rate=learning_rate,
        head_learning_rate=head_learning_rate,
        max_length=max_length,
        rank=rank,
        virtual_tokens=virtual_tokens,
        seed=seed,
        precision=precision,
        limit_train=limit_train,
        limit_validation=limit_validation,
        fuse=fuse,
        resume=resume,
        overwrite=overwrite,
    )
    console = Console()
    try:
        with _live(console) as on_progress:
            result = training.train(options, on_progress)
    except TrainingInterrupted as stopped:
        console.print(escape(str(stopped)), soft_wrap=True, highlight=False)
        raise typer.Exit(INTERRUPTED) from None
    _summarize(console, result)


@contextmanager
def _live(console: Console) -> Iterator[ProgressCallback]:
    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=30),
        TimeElapsedColumn(),
        TextColumn("{task.fields[facts]}"),
        console=console,
    )
    row = bar.add_task("loading", total=None, facts="")

    def on_progress(report: Report) -> None:
        facts = [f"step {report.step}/{report.total_steps}", f"epoch {report.epoch:.2f}"]
        if report.loss is not None:
            facts.append(f"loss {report.loss:.4f}")
        if report.score is not None:
            facts.append(f"score {report.score:.4f}")
        if report.seconds_left is not None:
            facts.append(f"{report.seconds_left:.0f} s left")
        bar.update(row, description="training", completed=report.step, total=report.total_steps, facts=", ".join(facts))
        if report.phase == "evaluate":
            console.print(f"epoch {report.epoch:.2f}: score {report.score:.4f}", highlight=False)

    with bar:
        yield on_progress


def _summarize(console: Console, result: training.TrainResult) -> None:
    card = result.card
    table = Table("what", "value", title=f"{card.task} with {card.method}", show_header=False)
    for name, value in card.scores.items():
        table.add_row(f"validation {name}", f"{value:.4f}")
    table.add_row("trained parameters", f"{result.trainable_parameters:,}")
    table.add_row("stored bytes", f"{result.stored_bytes:,}")
    table.add_row("training seconds", f"{result.train_seconds:.1f}")
    table.add_row("saved in", escape(str(result.output)))
    console.print(table)
    if card.partial_data:
        console.print(
            f"[yellow]partial data:[/] rows are missing in {' and '.join(card.partial_data)} of {card.task}; "
            "these are not the official set's scores",
            soft_wrap=True,
            highlight=False,
        )

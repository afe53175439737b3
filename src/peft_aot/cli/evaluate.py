"""`peft-aot evaluate`: a table or JSON of what `peft_aot.evaluate` finds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console
from rich.table import Table

import peft_aot.evaluate as evaluation
from peft_aot.cli.quiet import quiet_libraries
from peft_aot.inference import EVALUATION_BATCH


def evaluate(
    directory: Annotated[Path, typer.Argument(help="Output directory of a training run.")],
    model: Annotated[str | None, typer.Option(help="Backbone, if it is not where the task card says.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Folder in hub layout to read instead of the hub.")] = None,
    split: Annotated[str, typer.Option(help="Split of a known task.")] = "validation",
    file: Annotated[Path | None, typer.Option(help="CSV, TSV, JSONL or parquet file to score on.")] = None,
    limit: Annotated[int | None, typer.Option(help="Use only so many examples.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Examples per forward pass.")] = EVALUATION_BATCH,
    precision: Annotated[Literal["fp32", "bf16"] | None, typer.Option(help="Arithmetic; else as trained.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Score a trained adapter on a split or a file."""
    quiet_libraries()
    result = evaluation.evaluate(
        evaluation.EvaluateOptions(directory, model, data_dir, split, file, limit, batch_size, precision)
    )
    if as_json:
        answer = {
            "task": result.card.task,
            "method": result.card.method,
            "split": result.split,
            "origin": result.origin,
            "partial": result.partial,
            "examples": result.examples,
            "scores": result.scores,
            "score": result.score,
            "seconds": result.seconds,
        }
        typer.echo(json.dumps(answer))
        return
    console = Console()
    table = Table("score", "value", title=f"{result.card.task} with {result.card.method}, {result.split}")
    for name, value in result.scores.items():
        table.add_row(name, f"{value:.4f}")
    console.print(table)
    console.print(f"{result.examples:,} examples of {result.origin}", soft_wrap=True, highlight=False)
    if result.partial:
        console.print("[yellow]partial data:[/] these are not the official set's scores", soft_wrap=True)

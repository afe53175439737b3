"""`peft-aot info`: what `peft_aot.info` finds, as lines or JSON."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from peft_aot.cli.quiet import quiet_libraries
from peft_aot.info import describe, lines


def info(
    path: Annotated[Path, typer.Argument(help="Folder of an adapter, or a table file.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say in words and sizes what an adapter or a table holds."""
    quiet_libraries()
    found = describe(path)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found), default=str))
        return
    print_lines(lines(found))


def print_lines(pairs: Sequence[tuple[str, str]]) -> None:
    """Print what and value side by side; values are never cut, since paths are there to be copied."""
    width = max(len(what) for what, _ in pairs)
    for what, value in pairs:
        typer.echo(f"{what:<{width}}  {value}")

"""The `peft-aot` command: the list of its verbs, and what an error looks like.

A verb is a function of the same name in the module of the same name, imported when it is called and not before, so
that neither `--help` nor one verb waits for what another needs. A new verb is one line in `VERBS`.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperCommand, TyperGroup

VERBS = {
    "demo": "Train three real tasks, answer a mixed batch, compare methods.",
    "train": "Train one task on one backbone with one method.",
    "compare": "Compare methods on tasks: search, seeds, costs; a table, pictures and a page.",
    "evaluate": "Score a trained adapter on a split or a file.",
    "predict": "Answer texts with a trained adapter: text in, JSON out.",
    "serve": "Serve a folder of trained adapters over HTTP, all on one backbone.",
    "fuse": "Write the lookup table of a trained AoT adapter.",
    "info": "Say what an adapter or a table holds.",
}
BAD_INPUT = 2
PLAIN = None
"""How help is written: boxes of rich cut the names of options short in a terminal of 80 columns."""


class LazyVerb(TyperCommand):
    """A verb that is known by name and summary until it is called."""

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """Import the verb and let it take over."""
        module = importlib.import_module(f"peft_aot.cli.{self.name}")
        single = typer.Typer(add_completion=False, rich_markup_mode=PLAIN)
        single.command(self.name)(getattr(module, str(self.name)))
        return typer.main.get_command(single).make_context(info_name, args, parent, **extra)


class Verbs(TyperGroup):
    """The verbs in the order of `VERBS`."""

    def list_commands(self, ctx: Any) -> list[str]:
        """Names of the verbs."""
        return list(VERBS)

    def get_command(self, ctx: Any, cmd_name: str) -> LazyVerb | None:
        """Find a verb by name."""
        about = VERBS.get(cmd_name)
        return None if about is None else LazyVerb(cmd_name, short_help=about, rich_markup_mode=PLAIN)


app = typer.Typer(cls=Verbs, no_args_is_help=True, add_completion=False, rich_markup_mode=PLAIN)


@app.callback()
def peft_aot(
    traceback: bool = typer.Option(False, "--traceback", help="Show where in the code an error arose."),
) -> None:
    """AoT P-Tuning inside Hugging Face PEFT: train, score, answer, fuse."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command; bad input ends with one line on standard error and exit code 2, Ctrl-C with 130."""
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(arguments, prog_name="peft-aot")
    except (ValueError, OSError) as error:
        if "--traceback" in arguments:
            raise
        Console(stderr=True).print(f"[red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        raise SystemExit(BAD_INPUT) from error

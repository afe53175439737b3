"""The table in a terminal. Columns that do not fit beside each other become further tables below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, JustifyMethod, RenderResult
from rich.table import Table as RichTable
from rich.text import Text

from peft_aot.compare.summary import Summary

from .entries import Entry
from .table import Column, Table, build_table

GAP = 3  # characters between two columns, as `rich` sets them


class TerminalTable:
    """A comparison for `rich`: `console.print(TerminalTable(summary))`.

    Args:
        summary: The comparison.
    """

    def __init__(self, summary: Summary) -> None:
        self.table = build_table(summary)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """Yield as many tables as the width asks for, then notes and legend."""
        yield Text(self.table.caption, style="bold")
        for places in self._split(options.max_width):
            yield Text()
            yield self._part(places)
        for heading, sentences in (("Notes", self.table.notes), ("How to read", self.table.legend)):
            if sentences:
                yield Text(f"\n{heading}", style="bold")
            for sentence in sentences:
                yield Text(f"- {sentence}", style="" if heading == "Notes" else "dim")

    def _split(self, width: int) -> Iterator[list[int]]:
        """Yield the places of the columns of each part."""
        names = max((cell_len(line.label) for line in self.table.lines), default=0)
        titles = max((cell_len(block.title) for block in self.table.blocks), default=0)
        first = max(names, titles, len("method"))
        part: list[int] = []
        taken = first
        for place, column in enumerate(self.table.columns):
            wanted = GAP + self._width(place, column)
            if part and taken + wanted > width:
                yield part
                part, taken = [], first
            part.append(place)
            taken += wanted
        yield part

    def _width(self, place: int, column: Column) -> int:
        entries = (cell_len(str(line.entries[place])) for line in self.table.lines)
        return max(*entries, 0, *map(cell_len, column.heading.split() or [""]))

    def _part(self, places: Sequence[int]) -> RichTable:
        table: Table = self.table
        part = RichTable(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
        part.add_column("method", no_wrap=True, vertical="bottom")
        for place in places:
            column = table.columns[place]
            justify: JustifyMethod = "left" if column.kind == "word" else "right"
            # Headings may wrap; the entries are what the column is made wide enough for.
            width = self._width(place, column)
            part.add_column(Text(column.heading), justify=justify, width=width, vertical="bottom")
        for block in table.blocks:
            if len(table.blocks) > 1:
                part.add_row(Text(block.title, style="dim italic"))
            for line in block.lines:
                part.add_row(Text(line.label), *(_styled(line.entries[place]) for place in places))
            part.add_section()
        return part


def _styled(entry: Entry) -> Text:
    style = "bold" if entry.best else "" if entry.value is not None or not entry.detail else "dim"
    return Text(str(entry), style=style, no_wrap=True)

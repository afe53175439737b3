"""The table as Markdown, as GitHub and most other sites render it."""

from __future__ import annotations

import re

from peft_aot.compare.summary import Summary

from .entries import NOTHING, Entry
from .table import build_table

SPECIAL = re.compile(r"([\\`*\[\]|<>~$]|(?<![^\W_])_|_(?![^\W_]))")
"""What Markdown would take for markup; an underscore within a word is none."""
OPENING = re.compile(r"^(\d+)([.)])(?=\s|$)|^([-+#=])(?=[-+#=\s]|$)")
"""What begins a list or a heading at the start of a line."""


def escape(text: str) -> str:
    """Write any text on one line so that Markdown shows it as it is."""
    line = SPECIAL.sub(r"\\\1", " ".join(text.split())).replace("&", "&amp;")
    return OPENING.sub(lambda found: f"{found[1]}\\{found[2]}" if found[1] else f"\\{found[3]}", line)


def markdown(summary: Summary) -> str:
    """Render a comparison as a Markdown section: table, notes, legend."""
    table = build_table(summary)
    headings = ["method", *(escape(column.heading) for column in table.columns)]
    rules = ["---", *("---" if column.kind == "word" else "---:" for column in table.columns)]
    rows = [headings, rules]
    for block in table.blocks:
        if len(table.blocks) > 1:
            rows.append([f"*{escape(block.title)}*", *("" for _ in table.columns)])
        rows += [[escape(line.label), *map(_cell, line.entries)] for line in block.lines]
    lines = [f"{escape(table.caption)}.", "", *(f"| {' | '.join(row)} |" for row in rows), ""]
    for heading, sentences in (("Notes", table.notes), ("How to read", table.legend)):
        if sentences:
            lines += [f"**{heading}**", "", *(f"- {escape(sentence)}" for sentence in sentences), ""]
    return "\n".join(lines)


def _cell(entry: Entry) -> str:
    text = entry.text if entry.text == NOTHING else escape(entry.text)
    spread = f" ({entry.spread})" if entry.spread else ""
    remark = f", {escape(entry.remark)}" if entry.remark else ""
    return f"{f'**{text}**' if entry.best else text}{spread}{remark}"

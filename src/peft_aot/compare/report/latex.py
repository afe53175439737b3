r"""The table as LaTeX: floats for `\input`, with booktabs and graphicx, for any engine."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from peft_aot.compare.summary import Summary

from .entries import NOTHING, Entry
from .table import Column, Table, build_table

TASKS_ABREAST = 7  # more scores beside each other would be too small to read on one page's width

REPLACED = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': "''",
    "[": "{[}",  # \\ would take a bracket or a star behind it for its own
    "]": "{]}",
    "*": "{*}",
    "\N{EN DASH}": "--",
    "\N{EM DASH}": "---",
    "\N{MULTIPLICATION SIGN}": r"\ensuremath{\times}",
    "\N{PLUS-MINUS SIGN}": r"\ensuremath{\pm}",
    "\N{MICRO SIGN}": r"\ensuremath{\mu}",
    "\N{MINUS SIGN}": r"\ensuremath{-}",
    "\N{HORIZONTAL ELLIPSIS}": r"\ldots{}",
    "\N{LEFT SINGLE QUOTATION MARK}": "`",
    "\N{RIGHT SINGLE QUOTATION MARK}": "'",
    "\N{LEFT DOUBLE QUOTATION MARK}": "``",
    "\N{RIGHT DOUBLE QUOTATION MARK}": "''",
}
ACCENTED = re.compile("[\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u00ff]")
"""Latin letters that pdfTeX's standard fonts have."""

HEAD = r"""% Needs \usepackage{booktabs} and \usepackage{graphicx}.
% Shrinks what is wider than the text, and leaves the rest as it is.
\providecommand{\comparisonfit}[1]{\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{#1}}
"""


def escape(text: str) -> str:
    """Write any text on one line so that LaTeX shows it; letters it has no glyph for become their code points."""
    return "".join(_character(character) for character in " ".join(text.split()))


def _character(character: str) -> str:
    if character in REPLACED:
        return REPLACED[character]
    if " " <= character <= "~" or ACCENTED.match(character):
        return character
    return f"{{[}}U+{ord(character):04X}{{]}}"


def latex(summary: Summary) -> str:
    r"""Render a comparison as LaTeX `table*` floats (scores by task, then costs), notes and legend."""
    table = build_table(summary)
    scores = [place for place, column in enumerate(table.columns) if column.kind == "score"]
    costs = [place for place, column in enumerate(table.columns) if column.kind != "score"]
    parts = math.ceil(len(scores) / TASKS_ABREAST)
    size = math.ceil(len(scores) / parts)
    chunks = [scores[start : start + size] for start in range(0, len(scores), size)]
    floats = [
        _float(table, chunk, f"Scores{f', part {number} of {parts}' if parts > 1 else ''}", f"scores-{number}")
        for number, chunk in enumerate(chunks, start=1)
    ]
    sentences = [
        _list(heading, found) for heading, found in (("Notes", table.notes), ("How to read", table.legend)) if found
    ]
    return "\n".join([HEAD, *floats, _float(table, costs, "Costs", "costs"), *sentences])


def _float(table: Table, places: Sequence[int], title: str, label: str) -> str:
    columns = [table.columns[place] for place in places]
    kinds = "".join("l" if column.kind == "word" else "r" for column in columns)
    lines = [
        r"\begin{table*}",
        r"\centering",
        rf"\caption{{{escape(f'{title}. {table.caption}.')}}}",
        rf"\label{{tab:comparison-{label}}}",
        r"\medskip",
        r"\small",
        r"\comparisonfit{%",
        rf"\begin{{tabular}}{{l{kinds}}}",
        r"\toprule",
        _row(["method", *map(_heading, columns)]),
    ]
    for block in table.blocks:
        lines.append(r"\midrule")
        if len(table.blocks) > 1:
            lines.append(rf"\multicolumn{{{len(columns) + 1}}}{{l}}{{\emph{{{escape(block.title)}}}}} \\")
        for line in block.lines:
            entries = [line.entries[place] for place in places]
            if columns[0].kind == "score":
                lines += _score_rows(escape(line.label), entries)
            else:
                lines.append(_row([escape(line.label), *map(_on_one_line, entries)]))
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}%", "}", r"\end{table*}", ""])


def _list(heading: str, sentences: Sequence[str]) -> str:
    items = [rf"\item {escape(sentence)}" for sentence in sentences]
    return "\n".join([rf"\paragraph{{{heading}}}", r"\begin{itemize}\sloppy", *items, r"\end{itemize}", ""])


def _score_rows(label: str, entries: Sequence[Entry]) -> list[str]:
    """Write scores, and their spreads small in a row below, so that columns stay narrow."""
    remarks = [rf"{{\scriptsize {escape(entry.remark)}}} " if entry.remark else "" for entry in entries]
    rows = [_row([label, *(remark + _main(entry) for remark, entry in zip(remarks, entries, strict=True))])]
    if any(entry.spread for entry in entries):
        rows[0] += "[-3pt]"
        spreads = [_dashes(entry.spread) for entry in entries]
        rows.append(_row(["", *(rf"{{\scriptsize {spread}}}" if spread else "" for spread in spreads)]))
    return rows


def _main(entry: Entry) -> str:
    text = "--" if entry.text == NOTHING else _dashes(escape(entry.text))
    return rf"\textbf{{{text}}}" if entry.best else text


def _on_one_line(entry: Entry) -> str:
    spread = f" ({_dashes(entry.spread)})" if entry.spread else ""
    remark = f", {escape(entry.remark)}" if entry.remark else ""
    return f"{_main(entry)}{spread}{remark}"


def _heading(column: Column) -> str:
    """Write a heading; what stands in brackets goes below, so that the column stays narrow."""
    name, bracket, rest = column.heading.partition(" (")
    if not bracket:
        return escape(name)
    return rf"\shortstack[r]{{{escape(name)}\\({escape(rest)}}}"


def _dashes(text: str) -> str:
    """Set a range with a dash, and a negative number with a minus."""
    if " to " in text or text.startswith("-"):
        return re.sub(r"-(?=\d)", r"\\ensuremath{-}", text)
    return text.replace("-", "--")


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"

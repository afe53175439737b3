"""The table as LaTeX: whole rows and braces, and, where there is an engine, a document."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from compare.summaries import NASTY, done_cell, finished, method_row, nasty, summary, unfinished, unstarted
from peft_aot.compare.report.latex import TASKS_ABREAST, escape, latex
from peft_aot.compare.report.table import build_table
from peft_aot.compare.summary import Summary, TaskColumn

COMPARISONS = {
    "finished": finished(),
    "unfinished": unfinished(),
    "unstarted": unstarted(),
    "one": finished(1, 1),
    "nasty": nasty(),
    "no methods": summary([TaskColumn("rte", ("accuracy",), (), 0)], []),
    "nothing": summary([], []),
}
ENGINE = next(
    (found for name in ("pdflatex", "xelatex", "lualatex", "tectonic") if (found := shutil.which(name))), None
)


@pytest.fixture(params=COMPARISONS.values(), ids=COMPARISONS)
def comparison(request: pytest.FixtureRequest) -> Summary:
    return request.param


def count(mark: str, text: str) -> int:
    """Occurrences that no backslash stands before."""
    return len(re.findall(rf"(?<!\\){re.escape(mark)}", text))


def test_braces_and_environments_are_balanced(comparison: Summary) -> None:
    text = latex(comparison)
    assert count("{", text) == count("}", text)
    for name in ("table*", "tabular", "itemize"):
        assert text.count(rf"\begin{{{name}}}") == text.count(rf"\end{{{name}}}")


def test_every_row_has_every_cell(comparison: Summary) -> None:
    floats = re.findall(r"\\begin{tabular}{(\w+)}\n(.*?)\\end{tabular}", latex(comparison), re.DOTALL)
    columns = len(build_table(comparison).columns)
    assert sum(len(kinds) - 1 for kinds, _ in floats) == columns
    for kinds, body in floats:
        assert len(kinds) <= TASKS_ABREAST + 1
        for row in (line for line in body.splitlines() if r"\\" in line and "multicolumn" not in line):
            assert count("&", row) == len(kinds) - 1, row


def test_a_row_in_full() -> None:
    task = TaskColumn("cola", ("matthews_correlation",), ("train",), 100)
    cells = [done_cell("cola", "a_b", [0.6, -0.01], [0.6, 0.59, 0.61])], [done_cell("cola", "c", [0.1], [-0.01, 0.02])]
    text = latex(summary([task], [method_row("a_b", cells[0], ratio=1.0), method_row("c", cells[1])]))
    assert r"method & \shortstack[r]{cola\\(partial)} & macro \\" in text
    assert "a\\_b & \\textbf{60.0} & -- \\\\[-3pt]\n & {\\scriptsize 59.0--61.0} &  \\\\" in text
    assert r"{\scriptsize \ensuremath{-}1.0 to 2.0}" in text
    assert r"\multicolumn" not in text  # one block needs no title


def test_labels_notes_and_statuses_are_there() -> None:
    text = latex(unfinished())
    assert r"\shortstack[r]{boolq\\(partial)}" in text
    assert r"\shortstack[r]{super\_glue/rte\\(partial)}" in text
    for note in unfinished().notes:
        assert rf"\item {escape(note)}" in text
    for word in ("not run", "not applicable", "failed", r"{\scriptsize running} 85.3"):
        assert word in text


@pytest.mark.parametrize("character", "&%$#_{}~^\\")
def test_specials_are_escaped(character: str) -> None:
    assert escape(f"a{character}b") != f"a{character}b"
    assert count(character, escape(character).replace("{}", "")) <= (character == "\\")


def test_letters_without_a_glyph_become_code_points() -> None:
    assert escape("日本é") == "{[}U+65E5{]}{[}U+672C{]}é"


@pytest.mark.skipif(ENGINE is None, reason="no LaTeX engine (pdflatex, xelatex, lualatex, tectonic) is installed")
def test_it_compiles(comparison: Summary, tmp_path: Path) -> None:
    (tmp_path / "table.tex").write_text(latex(comparison), encoding="utf-8")
    packages = r"\documentclass{article}\usepackage{booktabs}\usepackage{graphicx}"
    body = r"\begin{document}x\input{table.tex}\end{document}"
    (tmp_path / "page.tex").write_text(packages + body, encoding="utf-8")
    options = [] if Path(str(ENGINE)).name == "tectonic" else ["-interaction=nonstopmode", "-halt-on-error"]
    result = subprocess.run(
        [str(ENGINE), *options, "page.tex"], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stdout[-2000:]
    assert (tmp_path / "page.pdf").stat().st_size > 1000


def test_nasty_names_are_all_there() -> None:
    text = latex(nasty())
    for name in NASTY:
        assert f"{escape(name)} & " in text

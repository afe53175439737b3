"""The table as Markdown."""

from __future__ import annotations

import re

import pytest
from markdown_it import MarkdownIt

from compare.summaries import NASTY, done_cell, empty_cell, finished, method_row, nasty, summary, unfinished, unstarted
from peft_aot.compare.report.markdown import escape, markdown
from peft_aot.compare.report.table import build_table
from peft_aot.compare.summary import Summary, TaskColumn


def rows_of(text: str) -> list[list[str]]:
    """Cells of a table, told from escaped bars."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def test_a_table_in_full() -> None:
    tasks = [TaskColumn("rte", ("accuracy",), (), 2490), TaskColumn("boolq", ("accuracy",), ("train",), 5000)]
    lora = method_row(
        "lora",
        [done_cell("rte", "lora", [0.782], [0.779, 0.782, 0.785]), empty_cell("boolq", "lora", "running")],
        "peft",
        title="LoRA",
        stored_bytes=1_250_000.0,
        ratio=1.06,
        ratio_low=1.05,
        ratio_high=1.07,
        mixes="adapters",
    )
    full = method_row("full", [done_cell("rte", "full", [0.8], [0.8]), empty_cell("boolq", "full")], "reference")
    text = markdown(summary(tasks, [lora, full], notes=("boolq is short of rows",), runs_done=3))
    assert text.startswith(
        "2 methods on 2 tasks, backbone roberta-base: 3 of 40 runs done.\n"
        "\n"
        "| method | rte | boolq (partial) | macro | trained | stored | peak memory | training | time / backbone "
        "| mixes |\n"
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |\n"
        "| *parameter-efficient methods* |  |  |  |  |  |  |  |  |  |\n"
        "| LoRA | **78.2** (77.9-78.5) | running | - | - | 1.25 MB | - | - | 1.06 (1.05-1.07) | adapters |\n"
        "| *references* |  |  |  |  |  |  |  |  |  |\n"
        "| full | 80.0 | not run | - | - | - | - | - | - | no |\n"
        "\n"
        "**Notes**\n"
        "\n"
        "- boolq is short of rows\n"
        "\n"
        "**How to read**\n"
        "\n"
    )


@pytest.mark.parametrize("comparison", [finished(), unfinished(), unstarted(), finished(1, 1), nasty()])
def test_every_row_has_every_cell(comparison: Summary) -> None:
    rows = rows_of(markdown(comparison))
    assert {len(row) for row in rows} == {len(build_table(comparison).columns) + 1}


def test_labels_and_notes_are_there() -> None:
    comparison = unfinished()
    text = markdown(comparison)
    assert "| boolq (partial) |" in text
    assert "| super_glue/rte (partial) |" in text
    for note in comparison.notes:
        assert f"- {note}" in text
    for word in ("running", "not run", "not applicable", "failed"):
        assert f"| {word} |" in text


@pytest.mark.parametrize("text", NASTY)
def test_a_renderer_gives_every_text_back(text: str) -> None:
    parsed = MarkdownIt("gfm-like", {"linkify": False}).parse(f"- {escape(text)}")
    inline = [token for token in parsed if token.type == "inline"]
    assert len(inline) == 1
    assert {child.type for child in inline[0].children or []} <= {"text", "text_special"}
    assert "".join(child.content for child in inline[0].children or []) == " ".join(text.split())


def test_a_renderer_finds_the_whole_table() -> None:
    tokens = MarkdownIt("gfm-like", {"linkify": False}).parse(markdown(nasty()))
    headings = [tokens[place + 1].children or [] for place, token in enumerate(tokens) if token.type == "th_open"]
    texts = ["".join(child.content for child in heading) for heading in headings]
    assert texts[1 : len(NASTY) + 1] == [f"{' '.join(name.split())} (partial)" for name in NASTY]
    assert sum(token.type == "td_open" for token in tokens) == len(NASTY) * len(headings)
    assert not any(token.type == "html_block" for token in tokens)


def test_numbers_are_not_escaped() -> None:
    assert escape("57.4 (57.3-57.4)") == "57.4 (57.3-57.4)"
    assert escape("-2.1") == "-2.1"
    assert escape("- item") == "\\- item"
    assert escape("super_glue/rte") == "super_glue/rte"

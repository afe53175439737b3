"""The table of a comparison: what each cell says, what competes with what, and how it looks in a terminal."""

from __future__ import annotations

import dataclasses
import io

import pytest
from rich.console import Console

from compare.summaries import done_cell, empty_cell, finished, method_row, summary, unfinished, unstarted
from peft_aot.compare.report.entries import duration, macro_entry, mark_best, percent, ratio_entry, score_entry
from peft_aot.compare.report.table import LONGEST_NAME, build_table, method_label
from peft_aot.compare.report.terminal import TerminalTable
from peft_aot.compare.summary import Summary, TaskColumn

RTE = TaskColumn("rte", ("accuracy",), (), 2490)
BOOLQ = TaskColumn("boolq", ("accuracy",), ("train",), 5000)


def printed(comparison: Summary, width: int = 400) -> str:
    file = io.StringIO()
    Console(file=file, width=width, color_system=None).print(TerminalTable(comparison))
    return file.getvalue()


def test_a_score_is_the_median_with_the_range_of_its_seeds() -> None:
    entry = score_entry(done_cell("rte", "lora", [0.7, 0.782], [0.782, 0.779, 0.785], learning_rate=1e-3, rank=8))
    assert str(entry) == "78.2 (77.9-78.5)"
    assert entry.value == 0.782
    assert entry.detail == "2 search runs, 3 seeds; learning_rate 0.001, rank 8"


def test_one_seed_has_no_range() -> None:
    assert str(score_entry(done_cell("rte", "lora", [0.782], [0.782]))) == "78.2"


def test_a_range_with_negative_ends_is_no_sum_of_dashes() -> None:
    assert str(score_entry(done_cell("cola", "lora", [0.0], [-0.021, -0.03, 0.012]))) == "-2.1 (-3.0 to 1.2)"


@pytest.mark.parametrize(
    ("status", "reason"), [("not run", ""), ("running", ""), ("not applicable", "no such head"), ("failed", "inf")]
)
def test_a_cell_without_a_score_says_why(status: str, reason: str) -> None:
    entry = score_entry(empty_cell("rte", "lora", status, reason))
    assert str(entry) == status
    assert entry.value is None
    assert reason in entry.detail


def test_a_score_that_may_change_says_so_and_does_not_win() -> None:
    better = dataclasses.replace(done_cell("rte", "lora", [0.9], [0.9]), status="running")
    same = dataclasses.replace(done_cell("rte", "ia3", [0.8], [0.8]), status="running")
    entries = mark_best([score_entry(cell) for cell in (better, same, done_cell("rte", "aot", [0.8], [0.8]))])
    assert [(str(entry), entry.best) for entry in entries] == [
        ("90.0, running", False),
        ("80.0, running", False),
        ("80.0", True),
    ]


def test_what_rounds_to_the_best_is_best() -> None:
    scores = (0.78201, 0.78199, 0.77)
    entries = mark_best([score_entry(done_cell("rte", "m", [score], [score])) for score in scores])
    assert [entry.best for entry in entries] == [True, True, False]


def test_failed_runs_are_counted() -> None:
    assert score_entry(done_cell("rte", "lora", [None, 0.7], [0.7])).detail.endswith("; 1 failed run")


def test_a_macro_average_of_running_tasks_is_running() -> None:
    running = dataclasses.replace(done_cell("boolq", "aot", [0.6], [0.6]), status="running")
    cells = [done_cell("rte", "aot", [0.8], [0.8]), running]
    row = method_row("aot", cells, macro=0.7, macro_tasks=("rte", "boolq"))
    assert str(macro_entry(row)) == "70.0, running"
    assert str(macro_entry(dataclasses.replace(row, macro=0.8, macro_tasks=("rte",)))) == "80.0"
    assert str(macro_entry(dataclasses.replace(row, macro=None, macro_tasks=()))) == "-"
    failed = dataclasses.replace(row, cells=(cells[0], empty_cell("boolq", "aot", "failed", "inf")))
    assert str(macro_entry(failed)) == "70.0", "what failed is over"


def test_a_ratio_says_how_it_was_served() -> None:
    row = method_row("aot", [], ratio=1.014, ratio_low=1.001, ratio_high=1.018, variant="table")
    assert str(ratio_entry(row)) == "1.01 (1.00-1.02), table"
    assert str(ratio_entry(method_row("aot", []))) == "-"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.9, "9.9 s"), (10, "10 s"), (99, "99 s"), (252, "4.2 min"), (7200, "2.0 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_no_negative_zero() -> None:
    assert percent(-0.0001) == "0.0"
    assert percent(-0.1004) == "-10.0"


def test_a_method_goes_by_its_title_unless_that_is_a_sentence() -> None:
    assert method_label(method_row("aot", [], title="AoT P-Tuning")) == "AoT P-Tuning"
    assert method_label(method_row("aot", [], title="x" * (LONGEST_NAME + 1))) == "aot"
    assert method_label(method_row("aot", [], title="")) == "aot"


def test_blocks_and_what_competes_in_them() -> None:
    table = build_table(finished())
    assert [block.title for block in table.blocks] == ["parameter-efficient methods", "references", "controls"]
    assert [line.method.name for line in table.blocks[1].lines] == ["full", "head"]
    assert [line.method.group for line in table.blocks[2].lines] == ["control"] * 4
    for place, column in enumerate(table.columns):
        best = [line for line in table.lines if line.entries[place].best]
        if column.kind == "score":
            values = {line.method.name: line.entries[place].value for line in table.blocks[0].lines}
            assert max(values, key=lambda name: values[name] or 0) in [line.method.name for line in best]
            assert all(line.method.group in ("ours", "peft") for line in best)
        else:
            assert not best


def test_columns_are_tasks_then_macro_then_costs() -> None:
    table = build_table(finished(tasks=2, methods=1))
    assert [column.heading for column in table.columns] == [
        "cola", "sst2", "macro", "trained", "stored", "peak memory", "training", "time / backbone", "mixes",
    ]  # fmt: skip
    assert [str(entry) for entry in table.lines[0].entries[3:5]] == ["1,180,000", "4.72 MB"]


def test_a_row_in_full() -> None:
    row = method_row(
        "lora",
        [done_cell("rte", "lora", [0.782], [0.782])],
        "peft",
        macro=0.782,
        macro_tasks=("rte",),
        trained_parameters=295682.0,
        stored_bytes=1_250_000.0,
        peak_memory_bytes=2_000_000_000,
        train_seconds=252.0,
        ratio=1.06,
        ratio_low=1.05,
        ratio_high=1.07,
        mixes="adapters",
    )
    line = build_table(summary([RTE], [row])).lines[0]
    assert [str(entry) for entry in line.entries] == [
        "78.2", "78.2", "295,682", "1.25 MB", "2 GB", "4.2 min", "1.06 (1.05-1.07)", "adapters",
    ]  # fmt: skip


def test_the_legend_names_what_the_average_is_taken_over() -> None:
    cells = [done_cell("rte", "aot", [0.8], [0.8]), done_cell("boolq", "aot", [0.6], [0.6])]
    row = method_row("aot", cells, macro=0.7, macro_tasks=("rte", "boolq"))
    legend = build_table(summary([RTE, dataclasses.replace(BOOLQ, scored="the test split")], [row])).legend
    assert "(rte: accuracy on the validation split; boolq (partial): accuracy on the test split)" in legend[0]
    assert "macro: mean over rte, boolq (partial)." in legend
    assert (
        "macro: mean over tasks; none yet, since no task has a score of every method."
        in build_table(unstarted()).legend
    )


def test_the_terminal_shows_every_cell_note_and_label() -> None:
    comparison = unfinished()
    text = printed(comparison)
    table = build_table(comparison)
    for line in table.lines:
        shown = next(row for row in text.splitlines() if row.startswith(line.label))
        for entry in line.entries:
            assert str(entry) in shown
    for sentence in (*table.notes, "boolq (partial)", table.caption, "references", "controls"):
        assert sentence in text
    for word in ("running", "not run", "not applicable", "failed"):
        assert word in text


@pytest.mark.parametrize("width", [60, 80, 120, 200])
def test_a_narrow_terminal_gets_several_tables_and_loses_nothing(width: int) -> None:
    comparison = unfinished()
    text = printed(comparison, width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text
    for line in build_table(comparison).lines:
        parts = " ".join(row for row in text.splitlines() if row.startswith(line.label))
        for entry in line.entries:
            assert str(entry) in parts
    titles = [row for row in text.splitlines() if row.strip() == "parameter-efficient methods"]
    assert text.count("AoT P-Tuning (Kronecker)") == len(titles) > 1


def test_a_terminal_shows_markup_as_it_is() -> None:
    task = TaskColumn("[red]x[/red]", ("accuracy",), (), 0)
    text = printed(summary([task], [method_row("[bold]", [empty_cell(task.name, "[bold]")])], notes=("[link]",)))
    assert "[red]x[/red]" in text
    assert "[bold]" in text
    assert "- [link]" in text


def test_nothing_run_and_no_methods_at_all() -> None:
    assert printed(unstarted()).count("not run") == 3 * 4
    assert "0 methods on 0 tasks" in printed(summary([], []))

"""From records to scores, macro averages and costs."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from peft_aot.compare.evp import expected_best
from peft_aot.compare.facts import TaskFacts
from peft_aot.compare.options import CompareOptions
from peft_aot.compare.plan import Plan
from peft_aot.compare.records import RunRecord
from peft_aot.compare.summarize import summarize
from peft_aot.compare.summary import Cell, Summary
from peft_aot.features import Features
from peft_aot.task import LocalFiles
from peft_aot.tasks import get_task
from records import cost, record

POINTS = {
    "aot": [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}],
    "lora": [{"learning_rate": 1e-3}, {"learning_rate": 1e-2}],
}


def facts(name: str, partial: tuple[str, ...] = ()) -> TaskFacts:
    return TaskFacts(name, get_task(name), partial, Features([{}] * 7, [1] * 7), 70, 10, ())


def options(**changes: Any) -> CompareOptions:
    values: dict[str, Any] = {"trials": 2, "seeds": 2, **changes}
    return CompareOptions("some/backbone", Path("out"), ("rte", "boolq"), ("aot", "lora"), **values)


def summary(runs: list[RunRecord], excluded: dict[tuple[str, str], str] | None = None, **changes: Any) -> Summary:
    plan = Plan(("rte", "boolq"), POINTS, excluded or {}, seeds=2)
    tasks = [facts("rte"), facts("boolq", ("train",))]
    return summarize(options(**changes), plan, tasks, runs, [cost("aot", 1.05, "factors"), cost("aot", 1.01, "table")])


def search(task: str, method: str, *scores: float | None, **others: Any) -> list[RunRecord]:
    return [
        record(
            task, score, method, trial, 0, POINTS[method][trial],
            status="failed" if score is None else "done", reason="diverged" if score is None else "", **others,
        )
        for trial, score in enumerate(scores)
    ]  # fmt: skip


def cell(found: Summary, method: str, task: str) -> Cell:
    row = next(row for row in found.methods if row.name == method)
    return next(cell for cell in row.cells if cell.task == task)


def test_the_score_is_the_median_over_seeds_of_the_best_settings() -> None:
    runs = [*search("rte", "aot", 0.5, 0.7), record("rte", 0.6, "aot", 1, 1, POINTS["aot"][1])]
    found = cell(summary(runs), "aot", "rte")
    assert (found.status, found.trials, found.seed_scores) == ("done", (0.5, 0.7), (0.7, 0.6))
    assert (found.median, found.low, found.high) == (pytest.approx(0.65), 0.6, 0.7)
    assert found.best_settings == POINTS["aot"][1]
    assert found.evp == pytest.approx(expected_best([0.5, 0.7]))


@pytest.mark.parametrize(
    ("runs", "status"),
    [
        ([], "not run"),
        (search("rte", "aot", 0.5), "running"),
        (search("rte", "aot", 0.5, 0.7), "running"),  # a seed is missing
        (search("rte", "aot", None, None), "failed"),
    ],
)
def test_unfinished_cells_say_so(runs: list[RunRecord], status: str) -> None:
    assert cell(summary(runs), "aot", "rte").status == status


def test_a_failed_trial_counts_as_the_lowest_score_of_the_task() -> None:
    runs = [*search("rte", "aot", 0.8, None), *search("rte", "lora", 0.4, 0.6), *search("boolq", "lora", 0.1, 0.1)]
    found = cell(summary(runs), "aot", "rte")
    assert (found.trials, found.failed, found.reason) == ((0.8, None), 1, "diverged")
    assert found.evp == pytest.approx(expected_best([0.8, 0.4]))
    assert "1 failed run of AoT-FC on rte: diverged" in summary(runs).notes


def test_the_macro_average_is_over_the_tasks_that_all_methods_have_searched() -> None:
    runs = [
        *search("rte", "aot", 0.5, 0.7),
        *search("rte", "lora", 0.6, 0.4),
        *search("boolq", "aot", 0.9, 0.9),
        *search("boolq", "lora", 0.9),
    ]
    found = summary(runs)
    assert [(row.name, row.macro, row.macro_tasks) for row in found.methods] == [
        ("aot", 0.7, ("rte",)),
        ("lora", 0.6, ("rte",)),
    ]
    assert "the macro average leaves out boolq, on which not every method has a score" in found.notes
    whole = summary([*runs, record("boolq", 0.3, "lora", 1, 0, POINTS["lora"][1])])
    assert [row.macro for row in whole.methods] == pytest.approx([0.8, 0.75])
    assert whole.methods[0].evp == pytest.approx((0.75, (0.65 + 0.9) / 2))


def test_a_task_that_a_method_cannot_do_is_left_out_for_all() -> None:
    runs = [*search("rte", "aot", 0.5, 0.7), *search("boolq", "aot", 0.9, 0.9), *search("boolq", "lora", 0.8, 0.8)]
    found = summary(runs, {("rte", "lora"): "PEFT cannot"})
    assert found.methods[0].macro_tasks == ("boolq",)
    refused = cell(found, "lora", "rte")
    assert (refused.status, refused.reason, refused.median) == ("not applicable", "PEFT cannot", None)
    assert "LoRA cannot do rte" in found.notes


def test_a_seed_that_failed_counts_as_the_lowest_score_of_the_task() -> None:
    failed = record("rte", None, "aot", 1, 1, POINTS["aot"][1], status="failed", reason="diverged")
    found = cell(summary([*search("rte", "aot", 0.5, 0.7), failed]), "aot", "rte")
    assert (found.seed_scores, found.median, found.failed) == ((0.7, 0.5), 0.6, 1)


def test_a_search_that_failed_is_over() -> None:
    found = summary(search("rte", "aot", None, None))
    assert (found.runs_done, found.runs_planned) == (2, 12 - 1)


def test_rows_that_were_missing_when_it_ran_are_labelled_for_ever() -> None:
    found = summary(search("rte", "aot", 0.5, 0.7, partial=["validation"]))
    assert [task.label for task in found.tasks] == ["rte (partial)", "boolq (partial)"]


def test_a_search_in_which_everything_failed_counts_as_the_lowest_score_of_the_task() -> None:
    runs = [
        *search("rte", "aot", None, None),
        *search("rte", "lora", 0.6, 0.4),
        *search("boolq", "aot", 0.9, 0.9),
        *search("boolq", "lora", 0.8, 0.8),
    ]
    found = summary(runs)
    assert cell(found, "aot", "rte").status == "failed" and cell(found, "aot", "rte").median is None
    assert [row.macro_tasks for row in found.methods] == [("rte", "boolq")] * 2
    assert [row.macro for row in found.methods] == pytest.approx([(0.4 + 0.9) / 2, (0.6 + 0.8) / 2])
    assert found.methods[0].evp == pytest.approx([(0.4 + 0.9) / 2] * 2)
    assert any(
        note.startswith("every search run of AoT-FC on rte failed, which counts as the lowest") for note in found.notes
    )
    nobody = summary([*search("rte", "aot", None, None), *search("rte", "lora", None, None), *runs[4:]])
    assert nobody.methods[0].macro_tasks == ("boolq",)


def test_a_line_that_stands_twice_counts_once() -> None:
    again = record("rte", 0.6, "aot", 1, 1, POINTS["aot"][1])
    found = summary([*search("rte", "aot", 0.5, 0.7), again, *search("rte", "aot", 0.5, 0.7), again])
    assert (cell(found, "aot", "rte").seed_scores, found.runs_done) == ((0.7, 0.6), 3)


def test_the_numbers_of_a_score_and_the_rows_they_are_of() -> None:
    names = ("rte", "mnli", "trec", "sms_spam", "multirc")
    tasks = [facts(name) for name in names]
    files = LocalFiles(Path("mine.csv"))
    for name, given in (("mine", files), ("ours", dataclasses.replace(files, validation=Path("v.csv")))):
        tasks.append(
            dataclasses.replace(facts("rte"), name=name, task=dataclasses.replace(get_task("rte"), source=given))
        )
    plan = Plan((*names, "mine", "ours"), POINTS, {}, seeds=1)
    runs = search("multirc", "aot", 0.5, scores={"f1a": 0.6, "em": 0.4})
    columns = summarize(options(), plan, tasks, runs, []).tasks
    assert [column.scored for column in columns] == [
        "the validation split", "the validation_matched split", "the test split", "one row in 5, held out",
        "the validation split", "one row in 10, held out", "the validation file",
    ]  # fmt: skip
    assert (columns[0].metrics, columns[4].metrics) == (("accuracy",), ("f1a", "em"))


def test_runs_that_were_not_made_alike_are_noted() -> None:
    runs = [
        *search("rte", "aot", 0.5, 0.7, precision="bf16"),
        *search("rte", "lora", 0.5, 0.7, machine="another", versions={"torch": "3"}),
    ]
    notes = " ".join(summary(runs).notes)
    for part in ("not all was measured on one machine", "some in bf16", "different versions of packages"):
        assert part in notes
    assert "bf16" not in " ".join(summary(search("rte", "aot", 0.5, 0.7)).notes)


def test_one_machine_with_other_threads_is_one_machine() -> None:
    runs = [
        *search("rte", "aot", 0.5, 0.7, machine="m, 1 threads"),
        *search("rte", "lora", 0.5, 0.7, machine="m, 2 threads"),
    ]
    notes = " ".join(summary(runs).notes)
    assert "not all was measured with as many threads" in notes and "one machine" not in notes


def test_costs_are_of_the_best_settings_and_the_fused_table() -> None:
    runs = [
        *search("rte", "aot", 0.5, 0.7, stored_bytes=100, trained_parameters=5, peak_memory_bytes=7, train_seconds=2.0),
        *search(
            "boolq", "aot", 0.5, 0.4, stored_bytes=300, trained_parameters=9, peak_memory_bytes=9, train_seconds=4.0
        ),
    ]
    row = summary(runs).methods[0]
    assert (row.stored_bytes, row.trained_parameters, row.peak_memory_bytes, row.train_seconds) == (200, 7, 9, 3.0)
    assert (row.ratio, row.ratio_low, row.ratio_high, row.variant) == (1.01, 1.0, 1.02, "table")
    assert row.points == tuple(POINTS["aot"])
    bare = summary([]).methods[1]
    assert (bare.ratio, bare.stored_bytes, bare.macro, bare.mixes) == (None, None, None, "adapters")


def test_memory_is_the_lowest_of_a_task_and_the_highest_of_the_tasks() -> None:
    memory = {("rte", 0): 9, ("rte", 1): 5, ("rte", 2): None, ("boolq", 0): 7, ("boolq", 1): 8, ("boolq", 2): 7}
    runs = [
        dataclasses.replace(run, peak_memory_bytes=memory[run.task, seed], seed=seed)
        for task in ("rte", "boolq")
        for run in search(task, "aot", 0.7, 0.5)[:1]
        for seed in (0, 1, 2)
    ]
    runs += [run for task in ("rte", "boolq") for run in search(task, "aot", 0.7, 0.5)[1:]]
    assert summary(runs).methods[0].peak_memory_bytes == 7


def test_partial_data_is_labelled_and_noted() -> None:
    found = summary([])
    assert [task.label for task in found.tasks] == ["rte", "boolq (partial)"]
    assert any(note.startswith("boolq: official rows are missing in train") for note in found.notes)
    assert (found.backbone, found.runs_done, found.runs_planned) == ("backbone", 0, 12)


def test_a_note_on_several_tasks_is_one_line() -> None:
    found = summary([*search("rte", "aot", 0.5, 0.7, partial=["train"])])
    assert "rte, boolq: official rows are missing in train; not the official set's score" in found.notes


def test_runs_of_other_settings_and_seeds_in_the_file_do_not_count() -> None:
    runs = [*search("rte", "aot", 0.5), record("rte", 0.99, "aot", 0, 0, {"learning_rate": 9.0})]
    runs += [record("rte", 0.9, "aot", 0, 5, POINTS["aot"][0]), record("elsewhere", 1.0, "aot")]
    found = summary(runs)
    assert cell(found, "aot", "rte").trials == (0.5,)
    assert cell(found, "aot", "rte").seed_scores == (0.5,)
    assert found.runs_done == 1

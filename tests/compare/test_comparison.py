"""Whole comparisons on a tiny backbone: finished, gone on with after a kill, refused, surviving what diverges."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import filelock
import pytest

from peft_aot.compare import CompareOptions, View, compare
from peft_aot.compare.estimate import Estimate
from peft_aot.compare.executor import RunListener
from peft_aot.compare.local import run_here
from peft_aot.compare.plan import Plan
from peft_aot.compare.records import CostRecord, RecordFile, Run, RunRecord
from peft_aot.progress import Progress
from peft_aot.task import LocalFiles
from tiny_text import colour_rows, write_backbone, write_csv


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("bb"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> LocalFiles:
    folder = tmp_path_factory.mktemp("data")
    rows = colour_rows(64)
    return LocalFiles(write_csv(folder / "colours.csv", rows), write_csv(folder / "validation.csv", rows[:32]))


@pytest.fixture
def options(backbone: Path, files: LocalFiles, tmp_path: Path) -> CompareOptions:
    return CompareOptions(
        model=str(backbone),
        output=tmp_path / "out",
        tasks=(files,),
        methods=("aot", "lora"),
        trials=2,
        seeds=2,
        epochs=2,
        precision="fp32",
        spaces={name: {"learning_rate": (1e-2, 1e-3), "rank": (2,)} for name in ("aot", "lora")},
        timing_rounds=2,
    )


class Told(View):
    """Remembers what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.runs: list[Run] = []
        self.phases: list[str] = []
        self.left: list[int] = []
        self.estimate: Estimate | None = None

    def note(self, text: str) -> None:
        self.notes.append(text)

    def begin(self, plan: Plan, records: Sequence[RunRecord], estimate: Estimate) -> None:
        self.estimate = estimate

    def started(self, run: Run) -> None:
        self.runs.append(run)

    def progress(self, run: Run, progress: Progress) -> None:
        self.phases.append(progress.phase)

    def finished(self, record: RunRecord, left: Estimate) -> None:
        self.left.append(left.runs)


def lines(options: CompareOptions) -> list[RunRecord]:
    return RecordFile(options.output / "runs.jsonl", RunRecord).records


def test_a_comparison_from_beginning_to_end(options: CompareOptions) -> None:
    view = Told()
    result = compare(options, view)
    runs = lines(options)
    assert [(r.method, r.trial, r.seed) for r in runs[:4]] == [
        ("aot", 0, 0),
        ("lora", 0, 0),
        ("aot", 1, 0),
        ("lora", 1, 0),
    ]
    assert sorted((r.method, r.seed) for r in runs[4:]) == [("aot", 1), ("lora", 1)]
    assert view.left == [5, 4, 3, 2, 1, 0]
    assert {"train", "evaluate"} == set(view.phases)
    for run in runs:
        assert run.status == "done" and run.score is not None
        assert [entry["epoch"] for entry in run.history] == [1.0, 2.0]
        assert run.score == max(entry["score"] or 0.0 for entry in run.history)
        assert run.protocol["model"] == options.model and run.protocol["epochs"] == 2
        assert run.trained_parameters > 0 and run.stored_bytes > 0 and run.peak_memory_bytes is not None
        assert set(run.versions) == {"peft_aot", "peft", "transformers", "torch"}
        assert run.config["peft_type"] == run.method.upper() and run.config["r"] == run.settings["rank"]
    costs = RecordFile(options.output / "costs.jsonl", CostRecord).records
    assert [(cost.method, cost.variant) for cost in costs] == [("aot", "factors"), ("aot", "table"), ("lora", "")]
    assert all(cost.ratio > 0 and len(cost.samples) == 2 for cost in costs)
    rows = {row.name: row for row in result.summary.methods}
    assert rows["aot"].cells[0].status == "done" and len(rows["aot"].cells[0].seed_scores) == 2
    assert rows["aot"].macro is not None and rows["aot"].variant == "table"
    assert result.summary.runs_done == result.summary.runs_planned == 6
    assert {file.name for file in result.files} >= {"report.html", "table.csv", "table.md", "table.tex", "evp.png"}
    assert all(file.stat().st_size for file in result.files)


def test_the_same_run_gives_the_same_score_and_another_seed_another_model(options: CompareOptions) -> None:
    first = dataclasses.replace(options, timing_rounds=0, seeds=1, trials=1)
    compare(first)
    again = dataclasses.replace(first, output=options.output / "again")
    compare(again)
    assert [run.history[-1]["loss"] for run in lines(first)] == [run.history[-1]["loss"] for run in lines(again)]
    compare(dataclasses.replace(first, seeds=2))
    losses = {run.seed: run.history[-1]["loss"] for run in lines(first) if run.method == "aot"}
    assert losses[0] != losses[1]


def test_a_killed_comparison_goes_on_and_repeats_nothing(options: CompareOptions) -> None:
    options = dataclasses.replace(options, timing_rounds=0)

    def killed(options: CompareOptions, runs: Sequence[Run], listener: RunListener) -> None:
        run_here(options, runs[:1], listener)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(options, executor=killed)
    before = (options.output / "runs.jsonl").read_bytes()
    assert before.count(b"\n") == 1
    assert (options.output / "report" / "report.html").is_file()
    with (options.output / "runs.jsonl").open("ab") as file:
        file.write(b'{"task": "colours", "met')  # the kill came while a line was written
    view = Told()
    compare(options, view)
    assert (options.output / "runs.jsonl").read_bytes().startswith(before)
    assert len(lines(options)) == 6 and len({run.run.key for run in lines(options)}) == 6
    assert len(view.notes) == 1 and view.notes[0].startswith("line 2 of")
    view = Told()
    result = compare(options, view)
    assert view.runs == []
    assert any(note.startswith("line 2 of") for note in result.summary.notes)


def test_a_run_that_diverges_is_recorded_and_the_rest_goes_on(options: CompareOptions) -> None:
    options = dataclasses.replace(
        options, spaces={**options.spaces, "lora": {"learning_rate": (1e30, 1e-3), "rank": (2,)}}, timing_rounds=0
    )
    result = compare(options)
    failed = [run for run in lines(options) if run.status == "failed"]
    assert [(run.method, run.score) for run in failed] == [("lora", None)]
    assert failed[0].reason.startswith("Diverged: expected finite lo")
    assert "lower the learning rate (now 1e+30)" in failed[0].reason
    cell = next(row for row in result.summary.methods if row.name == "lora").cells[0]
    assert (cell.failed, cell.status) == (1, "done")
    assert len(lines(options)) == 6


def test_early_stopping_saves_epochs(options: CompareOptions) -> None:
    options = dataclasses.replace(
        options, epochs=9, patience=1, seeds=1, trials=1, timing_rounds=0, methods=("head",),
        spaces={"head": {"learning_rate": (1e-9,), "weight_decay": (0.0,)}},
    )  # fmt: skip
    compare(options)
    assert [entry["epoch"] for entry in lines(options)[0].history] == [1.0, 2.0]


def test_estimating_and_reporting_run_nothing(options: CompareOptions) -> None:
    view = Told()
    result = compare(options, view, estimate_only=True)
    assert view.runs == [] and result.estimate is not None
    assert result.estimate.runs == 6 and result.estimate.seconds > 0 and result.estimate.memory_bytes > 10**8
    assert result.files == () and not options.output.exists(), "an estimate writes nothing"
    with pytest.raises(
        FileNotFoundError, match=r"expected the runs of a comparison in .*, got no runs\.jsonl; pass the"
    ):
        compare(options, view, report_only=True)
    assert not options.output.exists()
    options.output.mkdir()
    (options.output / "runs.jsonl").touch()
    result = compare(options, view, report_only=True)
    assert view.runs == [] and result.estimate is None
    assert [row.cells[0].status for row in result.summary.methods] == ["not run", "not run"]
    assert "not run" in (options.output / "report" / "table.md").read_text(encoding="utf-8")


def test_two_comparisons_do_not_write_to_one_directory(options: CompareOptions) -> None:
    options.output.mkdir()
    taken = pytest.raises(FileExistsError, match="expected a directory that no other comparison writes to, got")
    with filelock.FileLock(options.output / ".lock"), taken:
        compare(options)
    assert [path.name for path in options.output.iterdir()] == [".lock"]


def test_another_protocol_in_the_directory_is_refused(
    options: CompareOptions, files: LocalFiles, tmp_path: Path
) -> None:
    options = dataclasses.replace(options, trials=1, seeds=1, timing_rounds=0, methods=("head",), spaces={})
    compare(options)
    content = (options.output / "runs.jsonl").read_bytes()
    with pytest.raises(ValueError, match=r"expected epochs=2 as in the runs in .* got 3; pass the same options"):
        compare(dataclasses.replace(options, epochs=3))
    changed = tmp_path / "colours.csv"
    changed.write_bytes(files.train.read_bytes() + b"the dog is red,warm\n")
    with pytest.raises(ValueError, match=r"expected files='[0-9a-f]+' as in the runs in"):
        compare(dataclasses.replace(options, tasks=(dataclasses.replace(files, train=changed),)))
    assert (options.output / "runs.jsonl").read_bytes() == content


def test_an_own_task_does_not_take_over_the_runs_of_a_known_one(options: CompareOptions) -> None:
    options = dataclasses.replace(options, trials=1, seeds=1, timing_rounds=0, methods=("head",), spaces={})
    compare(options)
    file = options.output / "runs.jsonl"
    line = json.loads(file.read_text(encoding="utf-8"))
    del line["protocol"]["files"]  # as a known task of that name would have written it
    file.write_text(json.dumps(line) + "\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"expected files=None as in the runs in .*, got '[0-9a-f]+'"):
        compare(options)


def test_runs_on_other_data_are_refused(options: CompareOptions) -> None:
    options = dataclasses.replace(options, trials=1, seeds=1, timing_rounds=0, methods=("head",), spaces={})
    compare(options)
    file = options.output / "runs.jsonl"
    file.write_text(file.read_text(encoding="utf-8").replace('"train_examples": 64', '"train_examples": 63'))
    with pytest.raises(ValueError, match="expected 63 training examples of colours as in the runs in .*, got 64"):
        compare(options)


def test_a_method_that_cannot_adapt_the_backbone_is_left_out(options: CompareOptions) -> None:
    spaces = {"lora": {"learning_rate": (1e-3,), "rank": (2,), "target_modules": ("no_such_layer",)}}
    options = dataclasses.replace(options, trials=1, seeds=1, timing_rounds=2, methods=("head", "lora"), spaces=spaces)
    result = compare(options)
    assert [row.cells[0].status for row in result.summary.methods] == ["done", "not applicable"]
    assert result.summary.methods[1].cells[0].reason.startswith("it cannot adapt this backbone: ")
    assert result.summary.runs_done == result.summary.runs_planned == 1


def test_a_backbone_that_refuses_every_method_is_said_to(options: CompareOptions) -> None:
    spaces = {"lora": {"learning_rate": (1e-3,), "rank": (2,), "target_modules": ("no_such_layer",)}}
    with pytest.raises(
        ValueError, match=r"expected a method that can do .*, got lora \(it cannot adapt this backbone: "
    ):
        compare(dataclasses.replace(options, trials=1, methods=("lora",), spaces=spaces))


def test_a_broken_disk_stops_the_comparison_and_fails_no_run(
    options: CompareOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("unexpected pos 64 vs 0")

    monkeypatch.setattr("peft_aot.compare.execute.train", broken)
    monkeypatch.setattr("peft_aot.compare.execute.FULL_DISK", 2**80)
    with pytest.raises(RuntimeError, match="unexpected pos"):
        compare(options)
    assert lines(options) == []
    monkeypatch.setattr("peft_aot.compare.execute.FULL_DISK", 0)
    compare(dataclasses.replace(options, timing_rounds=0))
    assert {run.reason for run in lines(options)} == {"RuntimeError: unexpected pos 64 vs 0"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"max_length": 65},
            r"expected max_length of at most 64 \(the backbone's 64 positions less the virtual tokens",
        ),
        ({"tasks": ("rtee",)}, r"unknown task 'rtee'; did you mean 'rte'\?"),
        ({"methods": ("lorra",), "spaces": {}}, r"unknown method 'lorra'; did you mean 'lora'\?"),
        ({"spaces": {"lora": {"rank": (0,)}}}, r"expected a search space of 'lora' with a valid point, got 4 without"),
        (
            {"spaces": {"lora": {"learning_rate": (math.inf,)}}},
            r"space of 'lora' with a valid point.* expected a finite number as learning_rate, got inf",
        ),
        ({"spaces": {"hiwi": {}}}, r"expected a search space of a compared method, got 'hiwi'"),
        ({"trials": 99}, r"expected at least 99 valid points in the search space of 'aot'.* got 2"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    options: CompareOptions, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        compare(dataclasses.replace(options, **changes))
    assert not options.output.exists()


def test_a_backbone_that_is_not_there_is_refused_with_the_closest_name(options: CompareOptions, backbone: Path) -> None:
    wrong = str(backbone.with_name(backbone.name + "x"))
    with pytest.raises(FileNotFoundError, match=f"no such folder; did you mean '{backbone.name}'"):
        compare(dataclasses.replace(options, model=wrong))
    assert not options.output.exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trials": 0}, "expected trials above 0, got 0; pass a positive number"),
        (
            {"patience": -1},
            r"expected patience above 0, got -1; pass a positive number, or None \(on the command line 0\) to stop no",
        ),
        ({"epochs": math.nan}, "expected epochs above 0, got nan; pass a positive number"),
        ({"epochs": math.inf}, "expected epochs above 0, got inf; pass a positive number"),
        ({"max_length": 0}, "expected max_length above 0, got 0; pass a positive number"),
        ({"timing_rounds": 1}, "expected timing_rounds of 0 or at least 2, got 1"),
        ({"tasks": ()}, "expected at least one of tasks, got none; name some"),
        ({"methods": ("aot", "aot")}, "expected each of methods once, got aot, aot; name each once"),
    ],
)
def test_impossible_options_are_refused(options: CompareOptions, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(options, **changes)

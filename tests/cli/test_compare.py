"""`peft-aot compare` as a person uses it; killed and started again in a process of its own."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from peft_aot.cli.app import main
from peft_aot.cli.compare import _live as live
from peft_aot.cli.compare import describe, duration
from peft_aot.compare.estimate import Estimate
from peft_aot.compare.plan import Plan
from peft_aot.compare.records import RecordFile, Run, RunRecord
from peft_aot.compare.termination import sigterm_as_interrupt
from tiny_text import colour_rows, write_backbone, write_csv


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    write_backbone(folder / "bb")
    write_csv(folder / "colours.csv", colour_rows(64))
    return folder


def comparing(folder: Path, output: str, *more: str) -> list[str]:
    return [
        *("compare", "--model", str(folder / "bb"), "--output", str(folder / output), "--precision", "fp32"),
        *("--train-file", str(folder / "colours.csv"), "--methods", "aot,head", "--trials", "2", "--seeds", "1"),
        *("--epochs", "1", "--timing-rounds", "2", "--space", "aot.learning_rate=1e-2,1e-3"),
        *("--head-learning-rate", "5e-3", *more),
    ]


def test_a_comparison_in_a_terminal(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(comparing(folder, "a")) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert "1 task x 2 methods x 2 trials, the best with 1 seed: 4 runs, 0 of them finished" in shown
    assert "expected: about" in shown and "of memory" in shown
    assert "colours aot learning_rate=0.01 rank=64 head_learning_rate=0.005:" in shown
    assert "colours head learning_rate=0.005 weight_decay=0:" in shown, "its own rates are the head's"
    assert "report.html" in shown and "AoT-FC" in shown
    with (folder / "a" / "report" / "table.csv").open(encoding="utf-8", newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["aot", "head"]
    assert run(comparing(folder, "a")) == 0
    assert "4 runs, 4 of them finished" in " ".join(capsys.readouterr().out.split())
    assert (folder / "a" / "runs.jsonl").read_bytes().count(b"\n") == 4


def test_an_estimate_alone(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(comparing(folder, "b", "--estimate-only")) == 0
    assert "expected: about" in capsys.readouterr().out
    assert not (folder / "b").exists()
    assert run(comparing(folder, "b", "--report-only")) == 2
    assert "expected the runs of a comparison in" in capsys.readouterr().err
    assert not (folder / "b").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "rtee"], "unknown task 'rtee'; did you mean 'rte'?"),
        (["--methods", "aot,lorra"], "unknown method 'lorra'; did you mean 'lora'?"),
        (["--space", "aot.rank"], "expected METHOD.SETTING=VALUE,VALUE, got 'aot.rank'"),
        (["--space", "aot.rank=0"], "expected a search space of 'aot' with a valid point"),
        (["--space", "aot.rank=4", "--space", "aot.rank=8"], "expected each axis once, got aot.rank twice"),
        (["--space", "head.weight_decay=inf"], "expected a finite number as weight_decay, got inf"),
        (["--trials", "0"], "expected trials above 0, got 0"),
        (["--epochs", "nan"], "expected epochs above 0, got nan"),
        (
            ["--patience", "-1"],
            "expected patience above 0, got -1; pass a positive number, or None (on the command line 0)",
        ),
    ],
)
def test_bad_input_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    assert run(comparing(folder, "c", *more)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (folder / "c").exists()


def test_nothing_to_compare_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "--model", str(folder / "bb"), "--output", str(folder / "d")]) == 2
    assert "expected --tasks, --train-file or both, got neither" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "names"),
    [
        (["--validation-file", "v.csv"], "--validation-file"),
        (["--regression", "--pair-column", "b"], "--pair-column, --regression"),
        (["--text-column", "a", "--label-column", "c"], "--text-column, --label-column"),
    ],
)
def test_options_of_an_own_file_without_one(
    folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], names: str
) -> None:
    assert run(["compare", "--model", str(folder / "bb"), "--output", str(folder / "e"), "--tasks", "rte", *more]) == 2
    assert f"expected --train-file beside {names}, got none; name the file" in capsys.readouterr().err


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
def test_a_stopped_comparison_goes_on(folder: Path, tmp_path: Path, how: signal.Signals, code: int) -> None:
    arguments = comparing(folder, f"stopped-{how}", "--trials", "4", "--timing-rounds", "0")
    output = folder / f"stopped-{how}" / "runs.jsonl"
    command = [sys.executable, "-c", "from peft_aot.cli.app import main; main()", *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 240
    while not (output.is_file() and output.read_bytes().count(b"\n")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(how)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == code
    if how != signal.SIGKILL:
        assert "stopped; what is finished is in" in said
        assert not list(tmp_path.glob("peft-aot-run-*")), "nothing is left behind"
    before = output.read_bytes()
    assert 1 <= before.count(b"\n") < 8
    assert run(arguments) == 0
    assert output.read_bytes().startswith(before)
    records = RecordFile(output, RunRecord).records
    assert len(records) == 8 == len({record.run.key for record in records})


def test_what_does_not_run_is_told_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    excluded = {("copa", "prefix"): "no head", ("rte", "prefix"): "no head", ("rte", "lora"): "no layer"}
    plan = Plan(("copa", "sst2", "rte"), {"prefix": [{}], "lora": [{}]}, excluded, seeds=1)
    with live(Console()) as view:
        view.begin(plan, [], Estimate(3, 60.0, 1000))
    shown = capsys.readouterr().out
    assert "note: prefix does not run on copa, rte: no head" in shown
    assert "note: lora does not run on rte: no layer" in shown
    assert shown.count("note:") == 2


@pytest.mark.parametrize("interrupt", [signal.default_int_handler, signal.SIG_IGN])
def test_sigterm_is_an_interrupt_and_then_again_what_it_was(interrupt: Any) -> None:
    before = signal.getsignal(signal.SIGTERM)
    others = signal.signal(signal.SIGINT, interrupt)
    try:
        with sigterm_as_interrupt() as came:
            assert came == []
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGTERM)
            assert came == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGINT, others)
    assert signal.getsignal(signal.SIGTERM) == before


def test_words_for_runs_and_times() -> None:
    assert describe(Run("rte", "aot", 0, {"learning_rate": 1e-3, "rank": 64}, 2)) == (
        "rte aot learning_rate=0.001 rank=64 seed=2"
    )
    assert [duration(s) for s in (3.4, 89, 90, 3600, 5400, 86400)] == [
        "3 s",
        "89 s",
        "2 min",
        "60 min",
        "1 h 30 min",
        "24 h 0 min",
    ]

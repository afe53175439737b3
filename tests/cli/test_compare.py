"""`peft-aot compare` as a person uses it; killed and started again in a process of its own."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from peft_aot.cli.app import main
from peft_aot.cli.compare import describe, duration
from peft_aot.compare.records import RecordFile, Run, RunRecord
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
    assert "1 tasks x 2 methods x 2 trials, the best with 1 seeds: 4 runs, 0 of them finished" in shown
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
    assert not (folder / "b" / "runs.jsonl").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--tasks", "rtee"], "unknown task 'rtee'; did you mean 'rte'?"),
        (["--methods", "aot,lorra"], "unknown method 'lorra'; did you mean 'lora'?"),
        (["--space", "aot.rank"], "expected METHOD.SETTING=VALUE,VALUE, got 'aot.rank'"),
        (["--space", "aot.rank=0"], "expected a search space of 'aot' with a valid point"),
        (["--trials", "0"], "expected trials above 0, got 0"),
    ],
)
def test_bad_input_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str) -> None:
    assert run(comparing(folder, "c", *more)) == 2
    assert message in " ".join(capsys.readouterr().err.split())
    assert not (folder / "c").exists()


def test_nothing_to_compare_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["compare", "--model", str(folder / "bb"), "--output", str(folder / "d")]) == 2
    assert "expected --tasks, --train-file or both, got neither" in capsys.readouterr().err


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_a_stopped_comparison_goes_on(folder: Path, how: signal.Signals, code: int) -> None:
    arguments = comparing(folder, f"stopped-{how}", "--trials", "4", "--timing-rounds", "0")
    output = folder / f"stopped-{how}" / "runs.jsonl"
    command = [sys.executable, "-c", "from peft_aot.cli.app import main; main()", *arguments]
    process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 240
    while not (output.is_file() and output.read_bytes().count(b"\n")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(how)
    assert process.wait(timeout=120) == code
    before = output.read_bytes()
    assert 1 <= before.count(b"\n") < 8
    assert run(arguments) == 0
    assert output.read_bytes().startswith(before)
    records = RecordFile(output, RunRecord).records
    assert len(records) == 8 == len({record.run.key for record in records})


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

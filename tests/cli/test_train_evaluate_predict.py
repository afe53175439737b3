"""`peft-aot train`, `evaluate` and `predict` as a person uses them, in processes of their own where signals matter."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from peft_aot.cli.app import main
from peft_aot.cli.predict import parse_line
from peft_aot.task_card import load_card
from tiny_text import colour_rows, write_backbone, write_csv


def run(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return int(end.value.code or 0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("work")
    write_backbone(folder / "bb")
    write_csv(folder / "f.csv", colour_rows(64))
    write_csv(folder / "g.csv", colour_rows(16))
    return folder


def training(folder: Path, output: str, *more: str) -> list[str]:
    return [
        *("train", "--model", str(folder / "bb"), "--output", str(folder / output), "--precision", "fp32"),
        *("--train-file", str(folder / "f.csv"), "--validation-file", str(folder / "g.csv"), *more),
    ]


def test_train_then_evaluate_then_predict(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(training(folder, "a", "--method", "full", "--epochs", "8", "--learning-rate", "1e-3")) == 0
    assert "validation accuracy" in capsys.readouterr().out

    assert run(["evaluate", str(folder / "a"), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["scores"] == {"accuracy": 1.0}
    assert (answer["method"], answer["examples"], answer["partial"]) == ("full", 16, False)
    assert run(["evaluate", str(folder / "a"), "--limit", "2"]) == 0
    assert "partial data: these are not the official set's scores" in " ".join(capsys.readouterr().out.split())

    assert run(["predict", str(folder / "a"), "the dog is red", '{"text": "a blue cat", "id": 7}']) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["text"], first["label"]) == ("the dog is red", "warm")
    assert (second["text"], second["id"], second["label"]) == ("a blue cat", 7, "cold")
    assert "value" not in first

    lines = b"the dog is red\n\n  \na cat is blue\r\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines)))
    assert run(["predict", str(folder / "a"), "--batch-size", "1"]) == 0
    assert [json.loads(line)["label"] for line in capsys.readouterr().out.splitlines()] == ["warm", "cold"]

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"red\nblue\ncaf\xe9\n")))
    assert run(["predict", str(folder / "a")]) == 2
    assert "expected UTF-8 text on standard input, got byte 0xe9 in line 3; convert it" in capsys.readouterr().err


def test_train_says_what_is_wrong(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (training(folder, "x", "--method", "lroa"), "unknown method 'lroa'; did you mean 'lora'?"),
        (training(folder, "x", "--text-column", "txt"), "expected a column 'txt' in "),
        (training(folder, "x", "--task", "rte"), "expected either --task or --train-file, got both; pass one of them"),
        (["train", "--model", "m", "--output", "o"], "expected either --task or --train-file, got neither; pass one"),
        (["train", "--model", "m", "--output", "o", "--task", "ret"], "unknown task 'ret'; did you mean 'rte'?"),
    ):
        assert run(arguments) == 2
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error
    assert not (folder / "x").exists()


def test_parse_line() -> None:
    assert parse_line("plain { text", 1) == "plain { text"
    assert parse_line(' {"a": 1}', 1) == {"a": 1}
    with pytest.raises(ValueError, match="expected a JSON object in input 4, got .*; repair the line"):
        parse_line("{broken", 4)


def test_ctrl_c_ends_with_130_and_resume_goes_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = training(folder, "stopped", "--method", "head", "--epochs", "400")
    program = "from peft_aot.cli.app import main; main()"
    process = subprocess.Popen(
        [sys.executable, "-c", program, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert process.stdout is not None
    for line in process.stdout:  # the first score says that training is under way
        if "score" in line:
            break
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=60)[0]
    assert process.returncode == 130
    assert "run the same command with --resume to go on" in " ".join(rest.split())
    assert "Traceback" not in rest
    card = load_card(folder / "stopped")
    assert not card.complete
    assert 4 <= card.steps < 1600
    assert run(["evaluate", str(folder / "stopped"), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 16
    assert run(arguments) == 2
    assert "got an interrupted one; pass --resume to go on, --overwrite to replace it" in capsys.readouterr().err
    assert run([*arguments, "--seed", "1", "--resume"]) == 2
    assert "expected seed=0 as in the interrupted run" in capsys.readouterr().err

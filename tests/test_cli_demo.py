"""`peft-aot demo` in a terminal: options, what is printed, and how it ends. The demo itself is faked."""

import io
import re
from pathlib import Path

import pytest
from rich.console import Console

from peft_aot.cli import demo as verb
from peft_aot.cli.app import main
from peft_aot.demo.data import TASKS, TaskData
from peft_aot.demo.finished import Run
from peft_aot.demo.journey import DemoResult
from peft_aot.demo.questions import SENTENCES, Answer, Answers
from peft_aot.demo.results import Comparison, Row
from peft_aot.progress import Progress

ROW = Row("AoT from factors", True, 0.9742, 298_000, 1_420_000, 24.0, 25.0, 1.02, 0.99, 1.06)
COMPARISON = Comparison("Moods", "tiny", "machine", 240, 2, 699, 16, 22, 40, 24.6, 1e-4, (ROW,))
ANSWERS = Answers(4711, 1.5, 422_000_000, 33.0, 1e-7, (Answer("spam", "buy [now]", "spam", 0.987),))
RUN = Run(Path("a"), 0.95, 14.2, 300_295, 142_000_000)


@pytest.fixture
def ran(monkeypatch):
    """Replaces the demo by one that tells the watcher a little of everything; holds the options it was given."""
    options = []

    def run_demo(given, watcher):
        options.append(given)
        counts = {"train": 2400, "validation": 300, "test": 700}
        watcher.found(TaskData(TASKS[0], Path(), "a-carrier", counts, counts))
        watcher.skipped(TASKS[1], "expected [brackets] to survive")
        report = watcher.training("AoT on snips")
        report(Progress(10, 300, 0.1, 1.2345, None, 6.0, 100.0, "train"))
        report(Progress(150, 300, 1.0, 0.5, 0.911, 12.0, 50.0, "evaluate"))
        watcher.trained("AoT on snips", RUN, reused=False)
        watcher.trained("LoRA", RUN, reused=True)
        watcher.step("timing")
        watcher.answered(ANSWERS)
        watcher.compared(COMPARISON)
        return DemoResult("tiny", {"snips": RUN}, {}, ANSWERS, COMPARISON, (Path("c.md"), Path("c.png")))

    monkeypatch.setattr(verb, "run_demo", run_demo)
    return options


@pytest.fixture
def terminal(monkeypatch):
    """A terminal of 80 columns whose output can be read."""
    output = io.StringIO()
    monkeypatch.setattr(verb, "Console", lambda: Console(file=output, width=80))
    return output


def run(*arguments):
    with pytest.raises(SystemExit) as end:
        main(["demo", *arguments])
    return end.value.code


def test_shows_everything(ran, terminal):
    assert run() == 0
    text = terminal.getvalue()
    for expected in (
        "2,400 of 2,400 training examples",
        "from a-carrier",
        "skipped reviews: expected [brackets] to survive",
        "step 10/300, loss 1.234, 100 s left",
        "step 150/300, loss 0.500, validation 91.1%, 50 s left",
        "done AoT on snips: validation 95.0%, 300,295 numbers trained, 142 MB stored, trained in 14 s",
        "trained earlier",
        "buy [now]",
        "98.7%",
        "process 4711",
        "c.png",
    ):
        assert expected in text, expected


def test_tables_fit_eighty_columns(ran, terminal):
    run()
    line = next(line for line in terminal.getvalue().splitlines() if "AoT from factors" in line)
    assert re.split(r"\s{2,}", line.strip()) == [
        "AoT from factors",
        "97.4%",
        "298,000",
        "1.42 MB",
        "24 s",
        "1.02 (0.99-1.06)",
    ]


def test_options_arrive(ran, terminal, tmp_path):
    run("--output-dir", str(tmp_path), "--model", "m", "--train-examples", "99", "--epochs", "3", "--restart")
    (options,) = ran
    assert (options.output, options.model, options.sizes.train) == (tmp_path, "m", 99)
    assert (options.epochs, options.restart, options.comparison) == (3, True, True)
    assert options.questions == SENTENCES


def test_own_sentences(ran, terminal):
    run("--ask", "snips: play it", "--ask", "spam: buy now", "--no-comparison")
    (options,) = ran
    assert [(one.task, one.text) for one in options.questions] == [("snips", "play it"), ("spam", "buy now")]
    assert not options.comparison


def test_a_bad_sentence_is_refused_before_anything_runs(ran, terminal, capsys):
    assert run("--ask", "weather: will it rain") == 2
    assert "expected 'TASK: SENTENCE' with TASK among ['snips', 'reviews', 'spam']" in capsys.readouterr().err
    assert ran == []


def test_interrupt_says_how_to_go_on(monkeypatch, terminal):
    def interrupted(options, watcher):
        raise KeyboardInterrupt

    monkeypatch.setattr(verb, "run_demo", interrupted)
    assert run() == 130
    assert "the same command goes on where it stopped" in terminal.getvalue()


def test_a_missing_backbone_is_one_line(monkeypatch, terminal, capsys, tmp_path):
    monkeypatch.setattr("peft_aot.demo.carriers.BACKBONE_DISTRIBUTION", "not-there-3")
    assert run("--output-dir", str(tmp_path / "out")) == 2
    error = capsys.readouterr().err
    assert "expected the package not-there-3 to be installed" in error
    assert "--model" in error
    assert not (tmp_path / "out").exists()

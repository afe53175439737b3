"""The whole demo on a tiny backbone and made-up data: every step, a fresh process included, nothing faked."""

import os
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertModel, BertTokenizerFast

from peft_aot.demo import comparison as comparing
from peft_aot.demo import data, journey
from peft_aot.demo.carriers import CarrierMissingError
from peft_aot.demo.data import CarriedFiles, DemoTask, HubFiles, Sizes, TaskUnavailableError
from peft_aot.demo.journey import BASELINES, FACTORS, FUSED, DemoOptions, run_demo
from peft_aot.demo.questions import Question
from peft_aot.demo.results import load_comparison

pytest.importorskip("matplotlib")
pytestmark = pytest.mark.xdist_group("demo_journey")  # what the first test trains, the others look at

WORDS = {"sun": "glad", "cake": "glad", "rain": "sad", "mud": "sad", "sky": "blue", "grass": "green", "rose": "red"}
FILLERS = [f"w{i}" for i in range(30)]


def task(name, labels):
    carried = CarriedFiles(f"carrier-of-{name}", (f"{name}.csv",), "text", "label")
    return DemoTask(name, f"{name.title()}", {label: label for label in labels}, carried, HubFiles("a/b", (), "t", "l"))


TASKS = (task("moods", ("glad", "sad")), task("gone", ("x", "y")), task("colours", ("blue", "green", "red")))


class Recorder:
    """A watcher that writes down what it is told."""

    def __init__(self):
        self.events = []
        self.reports = []

    def found(self, data):
        self.events.append(("found", data.task.name))

    def skipped(self, task, reason):
        self.events.append(("skipped", task.name, reason))

    def training(self, title):
        self.events.append(("training", title))
        return self.reports.append

    def trained(self, title, run, reused):
        self.events.append(("trained", title, reused))

    def step(self, text):
        self.events.append(("step", text))

    def answered(self, answers):
        self.events.append(("answered", len(answers.answers)))

    def compared(self, comparison):
        self.events.append(("compared", len(comparison.rows)))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tiny backbone, two carriers that are there and one that is not."""
    root = tmp_path_factory.mktemp("world")
    backbone = root / "backbone"
    backbone.mkdir()
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, *FILLERS]
    (backbone / "vocab.txt").write_text("\n".join(vocabulary))
    BertTokenizerFast(str(backbone / "vocab.txt")).save_pretrained(backbone)
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(**sizes, vocab_size=len(vocabulary), max_position_embeddings=128)
    BertModel(config).save_pretrained(backbone)
    for one in TASKS:
        words = [word for word, label in WORDS.items() if label in one.labels]
        rows = [
            f"{FILLERS[i % 30]} {words[i % len(words)]} {FILLERS[i * 7 % 30]} {FILLERS[i * 11 % 29]},"
            f"{WORDS[words[i % len(words)]]}"
            for i in range(160 if words else 0)
        ]
        (root / f"{one.name}.csv").write_text("\n".join(["text,label", *rows]))

    def locate(distribution, name):
        if distribution == "carrier-of-gone":
            raise CarrierMissingError(f"expected the package {distribution} to be installed, got none")
        return root / name

    patch = pytest.MonkeyPatch()
    patch.setattr(data, "locate", locate)
    patch.setattr(journey, "TASKS", TASKS)
    patch.setenv("PYTHONPATH", str(Path(journey.__file__).parents[2]))
    yield DemoOptions(
        root / "output",
        str(backbone),
        Sizes(80, 20, 20),
        epochs=2,
        questions=(
            Question("moods", "w1 sun w2"),
            Question("colours", "w3 grass"),
            Question("gone", "nobody hears this"),
            Question("moods", "mud w4 w5 w6 w7"),
        ),
    )
    patch.undo()


@pytest.fixture(scope="module")
def first(world):
    watcher = Recorder()
    return run_demo(world, watcher), watcher


def test_order_of_events(first):
    _, watcher = first
    kinds = [event[:2] for event in watcher.events if event[0] != "step"]
    trainings = ["AoT on moods", "AoT on colours", *BASELINES.values()]
    expected = [("found", "moods"), ("skipped", "gone"), ("found", "colours")]
    for title in trainings:
        if title == BASELINES["head"]:
            expected.append(("answered", 3))
        expected += [("training", title), ("trained", title)]
    assert kinds == [*expected, ("compared", 7)]


def test_missing_carrier_skips_one_task_with_a_line(first):
    result, _ = first
    assert list(result.runs) == ["moods", "colours"]
    assert list(result.skipped) == ["gone"]
    assert result.skipped["gone"].startswith("expected the package carrier-of-gone to be installed, got none")
    assert "\n" not in result.skipped["gone"]


def test_training_reports_loss_score_and_time_left(first):
    _, watcher = first
    assert any(report.loss is not None for report in watcher.reports)
    assert any(report.score is not None for report in watcher.reports)
    assert any(report.seconds_left is not None for report in watcher.reports)


def test_fresh_process_answers_the_mixed_batch(first):
    answers = first[0].answers
    assert answers.pid != os.getpid()
    assert [(one.task, one.text) for one in answers.answers] == [
        ("moods", "w1 sun w2"),
        ("colours", "w3 grass"),
        ("moods", "mud w4 w5 w6 w7"),
    ]
    assert answers.answers[0].label in {"glad", "sad"}
    assert answers.answers[1].label in {"blue", "green", "red"}
    assert answers.answers[1].probability >= 1 / 3  # a most probable label of three, the padding taking nothing
    assert answers.alone_difference <= 1e-5
    assert answers.table_bytes > 0


def test_tables_are_beside_the_adapters(first, world):
    for name in ("moods", "colours"):
        assert (world.output / "adapters" / name / "aot_table.safetensors").is_file()
    assert not (world.output / "comparison" / "aot-factors" / "aot_table.safetensors").exists()


def test_comparison_has_every_method(first):
    comparison = first[0].comparison
    assert [row.title for row in comparison.rows] == [*BASELINES.values(), FACTORS, FUSED]
    factors, fused = comparison.rows[-2:]
    assert fused.score == factors.score
    assert fused.trainable_parameters == factors.trainable_parameters
    assert fused.stored_bytes > factors.stored_bytes
    assert comparison.fused_difference <= 2e-3
    assert comparison.test_examples == 20
    for row in comparison.rows:
        assert 0 <= row.score <= 1
        assert 0 < row.ratio_low <= row.ratio <= row.ratio_high
        assert row.train_seconds > 0


def test_head_only_trains_the_head_and_nothing_else(first):
    assert first[0].comparison.rows[0].trainable_parameters == 32 * 2 + 2


def test_files_for_people(first, world):
    result, _ = first
    assert [path.name for path in result.files] == ["comparison.md", "comparison.png"]
    page = result.files[0].read_text()
    assert "| AoT fused |" in page
    assert str(Path.home()) not in page
    assert result.files[1].read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert load_comparison(world.output / "comparison.json") == result.comparison


def test_second_run_trains_nothing(first, world, monkeypatch):
    asked = []
    monkeypatch.setattr(journey, "train", lambda *_: pytest.fail("trained again"))
    monkeypatch.setattr(journey, "ask", lambda questions, output: asked.append(questions) or first[0].answers)
    watcher = Recorder()
    result = run_demo(replace(world, comparison=False), watcher)
    assert result.runs == first[0].runs
    assert result.comparison is None
    assert all(event[2] for event in watcher.events if event[0] == "trained")
    assert [question.task for question in asked[0].questions] == ["moods", "colours", "moods"]


def test_restart_trains_again(first, world, monkeypatch):
    class Trained(Exception):
        pass

    def train(options, on_progress):
        raise Trained

    monkeypatch.setattr(journey, "train", train)
    monkeypatch.setattr(journey, "forget_run", lambda options: None)
    with pytest.raises(Trained):
        run_demo(replace(world, restart=True), Recorder())


def test_nothing_available_is_an_error_in_words(world, monkeypatch, tmp_path):
    monkeypatch.setattr(journey, "TASKS", TASKS[1:2])
    with pytest.raises(TaskUnavailableError, match=r"expected the examples of at least one task among \['gone'\]"):
        run_demo(replace(world, output=tmp_path), Recorder())


def test_failed_process_is_told_with_its_last_words(world, tmp_path, monkeypatch):
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho the last words >&2\nexit 3\n")
    python.chmod(0o755)
    monkeypatch.setattr(journey.sys, "executable", str(python))
    with pytest.raises(RuntimeError, match="got exit status 3; it said:\nthe last words"):
        journey.ask(journey.Questions(world.model, {}, world.questions), tmp_path)


def test_infinite_logits_are_refused():
    with pytest.raises(ValueError, match="expected finite logits of b, got"):
        comparing.check_outputs({"a": torch.zeros(1, 2), "b": torch.tensor([[0.0, float("nan")]])}, ("a", "b"))


def test_different_logits_of_a_pair_are_refused():
    with pytest.raises(ValueError, match="expected a and b to differ by at most 0.002, got 0.5; make the table again"):
        comparing.check_outputs({"a": torch.zeros(1, 2), "b": torch.full((1, 2), 0.5)}, ("a", "b"))


def test_difference_of_a_pair():
    assert comparing.check_outputs({"a": torch.zeros(1, 2), "b": torch.full((1, 2), 1e-3)}, ("a", "b")) == (
        pytest.approx(1e-3)
    )

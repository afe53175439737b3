"""Training end to end on a tiny backbone: every method learns, saves and loads; a stop loses nothing."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import threading
import time
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from safetensors.torch import load_file

from peft_aot import train as training
from peft_aot.evaluate import EvaluateOptions, evaluate
from peft_aot.head_card import HEAD_FILE, HeadCard, read_head_card
from peft_aot.loading import load_trained
from peft_aot.loop import Diverged, TaskTrainer
from peft_aot.methods import get_method, method_names
from peft_aot.predict import predict
from peft_aot.progress import Progress, TrainingInterrupted
from peft_aot.task import LocalFiles
from peft_aot.task_card import load_card
from peft_aot.train import TrainOptions, train
from tiny_text import ANIMALS, COLOURS, colour_rows, write_backbone, write_csv, write_jsonl

MULTIPLE_CHOICE = tuple(name for name in method_names() if not get_method(name).virtual_tokens)


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_backbone(tmp_path_factory.mktemp("bb"))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> LocalFiles:
    folder = tmp_path_factory.mktemp("data")
    rows = colour_rows(96)
    return LocalFiles(write_csv(folder / "train.csv", rows), write_csv(folder / "validation.csv", rows[:32]))


@pytest.fixture
def options(backbone: Path, files: LocalFiles, tmp_path: Path) -> TrainOptions:
    return TrainOptions(
        task=files, model=str(backbone), output=tmp_path / "out", method="lora", epochs=2, precision="fp32", rank=4
    )


@pytest.mark.parametrize("method", method_names())
def test_every_method_saves_what_evaluate_and_predict_load(options: TrainOptions, method: str) -> None:
    options = dataclasses.replace(options, method=method, virtual_tokens=4)
    result = train(options)
    card = load_card(options.output)
    assert result.card == card
    assert (card.method, card.complete, card.steps, card.epochs) == (method, True, 12, 2.0)
    assert not (options.output / "checkpoints").exists()
    assert result.stored_bytes == sum(path.stat().st_size for path in options.output.iterdir())
    again = evaluate(EvaluateOptions(options.output))
    assert again.scores == card.scores
    assert again.score == result.score
    answers = predict(load_trained(options.output), ["the dog is red", "a cat is blue"])
    torch.manual_seed(99)  # the heads and poolers of two loads start differently, and must end the same
    assert predict(load_trained(options.output), ["the dog is red", "a cat is blue"]) == answers
    assert all(answer.label in ("warm", "cold") for answer in answers)
    assert all(sum(answer.probabilities.values()) == pytest.approx(1.0) for answer in answers)


def test_an_adapter_says_what_its_outputs_mean(options: TrainOptions) -> None:
    options = dataclasses.replace(options, method="aot", max_length=24)
    with pytest.raises(TrainingInterrupted):
        train(options, StopAt(8))
    expected = HeadCard("SEQ_CLS", "single_label_classification", ("cold", "warm"), {"max_length": 24})
    for folder in (options.output, *options.output.glob("checkpoints/checkpoint-*")):
        assert read_head_card(folder / HEAD_FILE) == expected, folder
    card = train(dataclasses.replace(options, resume=True)).card
    assert read_head_card(options.output / HEAD_FILE) == expected and card.labels == expected.labels


def test_training_learns(options: TrainOptions) -> None:
    result = train(dataclasses.replace(options, method="full", epochs=12, learning_rate=1e-3))
    assert result.score == 1.0
    labels = [answer.label for answer in predict(load_trained(options.output), ["the bird is red", "a dog is green"])]
    assert labels == ["warm", "cold"]


def test_the_adapter_kept_is_the_best_epochs(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    first = dataclasses.replace(options, output=options.output / "first")
    with pytest.raises(TrainingInterrupted):
        train(first, StopAt(6))  # the end of the first epoch
    scores = iter([0.9, 0.5])
    monkeypatch.setattr(training, "compute_scores", lambda *_: {"accuracy": next(scores)})
    result = train(dataclasses.replace(options, output=options.output / "best"))
    assert (result.score, result.card.scores, result.steps) == (0.9, {"accuracy": 0.9}, 12)
    kept, expected = (load_file(run / "adapter_model.safetensors") for run in (result.output, first.output))
    assert all(value.equal(expected[name]) for name, value in kept.items())


def test_a_random_pooler_is_trained_and_saved_with_the_head(options: TrainOptions) -> None:
    train(dataclasses.replace(options, method="head"))
    names = load_file(options.output / "adapter_model.safetensors")
    assert sorted(name.rpartition("model.")[2] for name in names) == [
        "bert.pooler.dense.bias",
        "bert.pooler.dense.weight",
        "classifier.bias",
        "classifier.weight",
    ]


def test_bitfit_trains_and_restores_every_bias(options: TrainOptions) -> None:
    result = train(dataclasses.replace(options, method="bitfit"))
    saved = load_file(options.output / "adapter_model.safetensors")
    loaded = load_trained(options.output).model
    bare = load_trained(train(dataclasses.replace(options, output=options.output / "h", method="head")).output).model
    before = dict(bare.named_parameters())
    biases = {name: value for name, value in loaded.named_parameters() if name.endswith("bias") and "encoder" in name}
    assert len(biases) == 2 * 8
    moved = 0
    for name, value in biases.items():
        delta = saved[f"{name.removesuffix('.bias')}.bitfit_layer.bitfit_delta"]
        torch.testing.assert_close(value, before[name] + delta)
        moved += bool(delta.abs().max() > 1e-6)
    assert moved > 8  # a key's bias gets no gradient: softmax ignores it
    blocks, embeddings, pooler, head = sum(value.numel() for value in biases.values()), 32, 32 * 32 + 32, 2 * 32 + 2
    assert result.trainable_parameters == blocks + embeddings + pooler + head


def test_regression(options: TrainOptions, tmp_path: Path) -> None:
    rows = [
        {"a": f"{animal} is", "b": colour, "y": float(index)}
        for index, colour in enumerate(COLOURS)
        for animal in ANIMALS
    ] * 4
    path = write_jsonl(tmp_path / "f.jsonl", list(rows))
    task = LocalFiles(path, path, "a", "b", "y", "regression")
    result = train(dataclasses.replace(options, task=task, method="full", epochs=16, learning_rate=1e-3))
    assert set(result.card.scores) == {"pearson", "spearman"}
    assert result.score > 0.8
    low, high = predict(
        load_trained(options.output), [{"a": "dog is", "b": COLOURS[0]}, {"a": "dog is", "b": COLOURS[3]}]
    )
    assert low.label is None
    assert low.value is not None
    assert high.value is not None
    assert high.value > low.value


@pytest.fixture
def copa(tmp_path: Path) -> Path:
    folder = tmp_path / "hub" / "super_glue" / "copa"
    folder.mkdir(parents=True)
    # The right choice names the colour of the premise.
    columns: dict[str, list[object]] = {name: [] for name in ("premise", "choice1", "choice2", "question", "label")}
    for index in range(64):
        right, wrong = COLOURS[index % 4], COLOURS[(index + 1 + index // 4 % 3) % 4]
        label = index // 2 % 2
        choices = (right, wrong) if label == 0 else (wrong, right)
        for name, value in zip(columns, (f"the dog is {right}", *choices, "effect", label), strict=True):
            columns[name].append(value)
    for split in ("train_partial", "validation"):
        pyarrow.parquet.write_table(pyarrow.table(columns), folder / f"{split}-00000-of-00001.parquet")
    return tmp_path / "hub"


@pytest.mark.parametrize("method", MULTIPLE_CHOICE)
def test_multiple_choice_works_with_every_method_that_can(options: TrainOptions, copa: Path, method: str) -> None:
    result = train(dataclasses.replace(options, task="copa", data_dir=copa, method=method))
    assert result.card.kind == "multiple_choice"
    assert result.card.partial_data == ("train",)
    assert evaluate(EvaluateOptions(options.output, data_dir=copa)).scores == result.card.scores
    row = {"premise": "the cat is red", "choice1": "blue", "choice2": "red", "question": "effect"}
    (answer,) = predict(load_trained(options.output), [row])
    assert set(answer.probabilities) == {"choice1", "choice2"}


def test_progress_counts_steps_time_and_loss(options: TrainOptions) -> None:
    reports: list[Progress] = []
    train(options, reports.append)
    steps = [report for report in reports if report.phase == "train"]
    assert [report.step for report in steps] == list(range(1, 13))
    assert {report.total_steps for report in reports} == {12}
    assert steps[-1].loss is not None
    assert steps[-1].seconds_left == 0.0
    assert all(report.seconds_left is not None and report.seconds_left > 0 for report in steps[:-1])
    assert [report.step for report in reports if report.phase == "evaluate"] == [6, 12]


@pytest.mark.parametrize(("max_steps", "rates"), [(1, [1e-3]), (16, [1e-3]), (34, [0.0, 5e-4, 1e-3])])
def test_the_rate_rises_for_six_percent_of_the_steps_or_for_none(
    options: TrainOptions, monkeypatch: pytest.MonkeyPatch, max_steps: int, rates: list[float]
) -> None:
    found: list[float] = []
    step = torch.optim.AdamW.step

    def remember(self: torch.optim.AdamW, *arguments: object) -> object:
        found.append(self.param_groups[0]["lr"])
        return step(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(torch.optim.AdamW, "step", remember)
    train(dataclasses.replace(options, learning_rate=1e-3, max_steps=max_steps))
    assert found[: len(rates)] == pytest.approx(rates)


@pytest.mark.parametrize(("changes", "steps"), [({"max_steps": 3}, 3), ({"epochs": 1.5}, 9), ({"limit_train": 33}, 6)])
def test_steps_and_examples_can_be_limited(options: TrainOptions, changes: dict[str, object], steps: int) -> None:
    result = train(dataclasses.replace(options, **changes))  # type: ignore[arg-type]
    assert (result.steps, result.card.complete) == (steps, True)
    assert result.card.partial_data == (("train",) if "limit_train" in changes else ())
    assert evaluate(EvaluateOptions(options.output)).scores == result.card.scores


def test_a_run_killed_before_its_first_checkpoint_starts_anew(options: TrainOptions) -> None:
    def power_cut(_report: Progress) -> None:
        raise RuntimeError("power cut")

    with pytest.raises(RuntimeError, match="power cut"):
        train(options, power_cut)
    assert not (options.output / "task.json").exists()
    assert train(dataclasses.replace(options, resume=True)).steps == 12


class StopAt:
    """Presses Ctrl-C after a given step."""

    def __init__(self, step: int, signal_number: int | None = None) -> None:
        self.step = step
        self.signal_number = signal_number
        self.last = 0

    def __call__(self, report: Progress) -> None:
        self.last = report.step
        if report.step == self.step and report.phase == "train":
            if self.signal_number is None:
                raise KeyboardInterrupt
            os.kill(os.getpid(), self.signal_number)
            time.sleep(0.01)


# 6 steps per epoch: within the first, at its end, within the last
STOPS = {"lora": 2, "aot": 6, "prefix": 10, "full": 4, "bitfit": 8, "pafi": 3, "houlsby": 7}


@pytest.mark.parametrize(("method", "step"), STOPS.items())
def test_a_stopped_run_resumes_to_the_same_result(options: TrainOptions, method: str, step: int) -> None:
    options = dataclasses.replace(options, method=method, virtual_tokens=4)
    whole = train(dataclasses.replace(options, output=options.output / "whole"))
    part = dataclasses.replace(options, output=options.output / "part")
    with pytest.raises(TrainingInterrupted, match=f"stopped after step {step} of 12; .* with --resume to go on"):
        train(part, StopAt(step))
    card = load_card(part.output)
    assert (card.complete, card.steps, card.scores) == (False, step, {})
    assert evaluate(EvaluateOptions(part.output)).examples == 32  # the state it stopped in can be used
    reports: list[Progress] = []
    resumed = train(dataclasses.replace(part, resume=True), reports.append)
    assert reports[0].step == step + 1
    assert resumed.card == whole.card
    name = "model.safetensors" if method == "full" else "adapter_model.safetensors"
    expected, got = (load_file(folder / name) for folder in (whole.output, resumed.output))
    assert expected.keys() == got.keys()
    for key, value in expected.items():
        assert (value - got[key]).abs().max() <= 1e-6, key


def test_the_signal_of_ctrl_c_stops_and_its_handler_is_put_back(options: TrainOptions) -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted, match="stopped after step 3 of 12"):
        train(options, StopAt(3, signal.SIGINT))
    assert signal.getsignal(signal.SIGINT) is before
    assert load_card(options.output).steps == 3


def test_a_second_ctrl_c_interrupts_at_once_and_keeps_the_last_epoch(options: TrainOptions) -> None:
    def press_twice(report: Progress) -> None:
        if report.step == 8:
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGINT)
                time.sleep(0.01)

    # The first press only asks; the second one is a KeyboardInterrupt wherever the run is.
    with pytest.raises(KeyboardInterrupt):
        train(options, press_twice)
    assert train(dataclasses.replace(options, resume=True)).card.steps == 12


def test_training_works_outside_the_main_thread(options: TrainOptions) -> None:
    failures: list[BaseException] = []

    def run() -> None:
        try:
            train(dataclasses.replace(options, epochs=1))
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert not failures


def test_the_seed_decides_the_run(options: TrainOptions) -> None:
    def weights(seed: int, name: str) -> dict[str, object]:
        train(dataclasses.replace(options, epochs=1, seed=seed, output=options.output / name))
        return {
            key: value.tolist() for key, value in load_file(options.output / name / "adapter_model.safetensors").items()
        }

    assert weights(0, "a") == weights(0, "b") != weights(1, "c")


def test_a_fused_adapter_scores_the_same(options: TrainOptions) -> None:
    result = train(dataclasses.replace(options, method="aot", fuse=True))
    assert (options.output / "aot_table.safetensors").is_file()
    assert result.stored_bytes > (options.output / "aot_table.safetensors").stat().st_size
    assert evaluate(EvaluateOptions(options.output)).score == pytest.approx(result.score, abs=0.05)


def test_overwrite_replaces_the_adapter_and_leaves_other_files_alone(options: TrainOptions) -> None:
    train(dataclasses.replace(options, method="aot", fuse=True, epochs=1))
    (options.output / "mine.txt").write_text("keep", encoding="utf-8")
    with pytest.raises(FileExistsError, match="got a finished one; pass --overwrite to replace it"):
        train(options)
    train(dataclasses.replace(options, overwrite=True, epochs=1))
    assert load_card(options.output).method == "lora"
    assert not (options.output / "aot_table.safetensors").exists()
    assert (options.output / "mine.txt").read_text(encoding="utf-8") == "keep"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "lroa"}, r"unknown method 'lroa'; did you mean 'lora'\?"),
        ({"task": "rtee"}, r"unknown task 'rtee'; did you mean 'rte'\?"),
        ({"epochs": 0}, "expected epochs above 0, got 0; pass a positive number"),
        ({"epochs": float("nan")}, "expected epochs above 0, got nan; pass a positive number"),
        ({"learning_rate": float("inf")}, "expected learning_rate above 0, got inf"),
        ({"batch_size": -1}, "expected batch_size above 0, got -1"),
        ({"fuse": True}, "expected an AoT method to fuse, got 'lora'; drop fuse or choose aot"),
        (
            {"max_length": 65},
            r"expected max_length of at most 64 \(the backbone's 64 positions less 0 virtual tokens\)",
        ),
        ({"max_length": 60, "method": "prompt"}, "expected max_length of at most 44 .* less 20 virtual tokens"),
        ({"rank": 0}, "expected a rank of at least 1, got 0"),
    ],
)
def test_bad_options_are_refused_before_anything_changes(
    options: TrainOptions, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(options, **changes))  # type: ignore[arg-type]
    assert not options.output.exists()


def test_an_unknown_model_is_refused_before_anything_changes(options: TrainOptions) -> None:
    with pytest.raises(
        FileNotFoundError, match="expected a tokenizer in 'nobody/nothing', got: .*; pass the local path"
    ):
        train(dataclasses.replace(options, model="nobody/nothing"))
    assert not options.output.exists()


def test_settings_of_the_method_reach_its_configuration(options: TrainOptions) -> None:
    train(dataclasses.replace(options, method="aot", overrides={"dropout": 0.25, "activation": "relu"}, epochs=1))
    config = json.loads((options.output / "adapter_config.json").read_text(encoding="utf-8"))
    assert (config["dropout"], config["activation"], config["r"]) == (0.25, "relu", 4)


def test_weight_decay_shrinks_what_is_trained(options: TrainOptions) -> None:
    norms = []
    for decay in (0.0, 5.0):
        output = options.output / str(decay)
        train(dataclasses.replace(options, output=output, method="aot", weight_decay=decay, learning_rate=1e-2))
        factors = load_file(output / "adapter_model.safetensors")
        norms.append(sum(value.square().sum() for name, value in factors.items() if name.endswith("w1")))
    assert norms[1] < 0.9 * norms[0]


def test_patience_ends_a_run_that_no_longer_improves(options: TrainOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = iter([0.5, 0.6, 0.6, 0.55, 0.9])
    monkeypatch.setattr(training, "compute_scores", lambda *_: {"accuracy": next(scores)})
    result = train(dataclasses.replace(options, epochs=5, patience=2))
    assert (result.score, result.steps, result.card.epochs) == (0.6, 24, 4.0)


def test_a_run_that_diverges_says_so(options: TrainOptions) -> None:
    with pytest.raises(
        Diverged, match=r"expected finite lo\w+, got (nan|inf|-inf) at step \d+ of 12; .* \(now 1e\+30\)"
    ):
        train(dataclasses.replace(options, learning_rate=1e30))
    assert not (options.output / "adapter_config.json").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_learning_rate": 0.0}, r"expected head_learning_rate above 0, got 0\.0"),
        ({"patience": 0}, "expected patience above 0, got 0"),
        ({"weight_decay": -0.1}, r"expected weight_decay of at least 0, got -0\.1; 0 switches it off"),
        ({"overrides": {"lora_alfa": 3}}, r"unknown setting 'lora_alfa' of method 'lora'; did you mean 'lora_alpha'\?"),
        ({"method": "full", "overrides": {"r": 3}}, "expected no settings of an adapter with 'full', got r"),
    ],
)
def test_impossible_settings_are_refused(options: TrainOptions, changes: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        train(dataclasses.replace(options, **changes))  # type: ignore[arg-type]
    assert not options.output.exists()


@pytest.mark.parametrize("method", ["aot", "lora", "prefix", "full"])
def test_the_head_may_have_a_learning_rate_of_its_own(
    options: TrainOptions, method: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, set[float]] = {}
    make = TaskTrainer.create_optimizer

    def watched(self: TaskTrainer, model: torch.nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = make(self, model)
        names = {id(p): n for n, p in self.trained_model.named_parameters()}
        seen = [names[id(p)] for group in optimizer.param_groups for p in group["params"]]
        assert sorted(seen) == sorted(n for n, p in self.trained_model.named_parameters() if p.requires_grad)
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                head = "classifier" in names[id(parameter)] or "pooler" in names[id(parameter)]
                found.setdefault("head" if head else "rest", set()).add(group["lr"])
        return optimizer

    monkeypatch.setattr(TaskTrainer, "create_optimizer", watched)
    train(dataclasses.replace(options, method=method, learning_rate=1e-4, head_learning_rate=0.03, epochs=1))
    assert found == {"head": {0.03}, "rest": {1e-4}}

"""Remembering finished trainings: the same options and data are reused, anything else is not."""

from dataclasses import replace

import pytest

from peft_aot.demo.finished import forget_run, load_run, save_run
from peft_aot.task import LocalFiles
from peft_aot.task_card import TaskCard
from peft_aot.train import TrainOptions, TrainResult


@pytest.fixture
def options(tmp_path):
    for name in ("train", "validation"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"text": "{name}", "label": "x"}}\n')
    output = tmp_path / "adapter"
    output.mkdir()
    return TrainOptions(LocalFiles(tmp_path / "train.jsonl", tmp_path / "validation.jsonl"), "model", output)


@pytest.fixture
def saved(options):
    card = TaskCard("t", "classification", ("text",), "label", ("a", "b"), ("accuracy",), 64, "model", "aot", "fp32")
    return save_run(options, TrainResult(card, options.output, 0.9, 10, 12.5, 300, 4000))


def test_nothing_recorded(options):
    assert load_run(options) is None


def test_same_options_are_reused(options, saved):
    assert load_run(options) == saved
    assert saved.train_seconds == 12.5


@pytest.mark.parametrize("change", [{"epochs": 9.0}, {"model": "other"}, {"seed": 1}, {"fuse": True}])
def test_other_options_are_not(options, saved, change):
    assert load_run(replace(options, **change)) is None


def test_other_data_is_not(options, saved):
    options.task.train.write_text('{"text": "new", "label": "x"}\n')
    assert load_run(options) is None


def test_a_moved_directory_is_still_known(options, saved, tmp_path):
    options.output.rename(tmp_path / "moved")
    moved = replace(options, output=tmp_path / "moved")
    assert load_run(moved) == replace(saved, directory=tmp_path / "moved")


def test_forgotten(options, saved):
    forget_run(options)
    assert load_run(options) is None
    forget_run(options)

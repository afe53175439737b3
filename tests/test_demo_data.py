"""Examples of the demo's tasks: reading, splitting, the hub, and a task that is nowhere."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_aot.demo import data
from peft_aot.demo.carriers import CarrierMissingError
from peft_aot.demo.data import (
    CarriedFiles,
    DemoTask,
    Example,
    HubFiles,
    Sizes,
    TaskUnavailableError,
    prepare,
    read_examples,
    split_examples,
)

TASK = DemoTask(
    "moods",
    "Moods",
    {"0": "sad", "1": "glad"},
    CarriedFiles("odd-carrier", ("moods.csv",), "text", "mood", encoding="latin-1", keep=("source", "ours")),
    HubFiles("someone/moods", ("train", "test"), "words", "mood"),
)
SIZES = Sizes(train=10, validation=3, test=4)


@pytest.fixture
def carried(tmp_path, monkeypatch):
    path = tmp_path / "moods.csv"
    lines = [f'"row {i}, caf\xe9\x85",{int(i >= 20)},ours' for i in range(40)]  # sorted by label, as one carrier is
    path.write_bytes("\n".join(["text,mood,source", *lines, "other,0,theirs"]).encode("latin-1"))
    monkeypatch.setattr(data, "locate", lambda distribution, name: path)


@pytest.fixture
def nothing_carried(monkeypatch):
    def missing(distribution, name):
        raise CarrierMissingError(f"expected the package {distribution}")

    monkeypatch.setattr(data, "locate", missing)


def test_reads_splits_and_writes(carried, tmp_path):
    found = prepare(TASK, tmp_path / "moods", SIZES)
    assert found.origin == "odd-carrier"
    assert found.available == {"train": 33, "validation": 3, "test": 4}
    assert found.used == {"train": 10, "validation": 3, "test": 4}
    train = read_examples(found.file("train"))
    assert len(train) == 10
    assert {example.label for example in train} == {"sad", "glad"}  # shuffled before splitting
    assert all("caf\xe9" in example.text for example in train)
    first = json.loads(found.file("test").read_text(encoding="utf-8").split("\n")[0])
    assert set(first) == {"text", "label"}


def test_keeps_only_the_rows_of_its_source(carried, tmp_path):
    found = prepare(TASK, tmp_path / "moods", Sizes(100, 100, 100))
    everything = [e for split in data.SPLITS for e in read_examples(found.file(split))]
    assert len(everything) == 40
    assert not any(example.text == "other" for example in everything)


def test_same_examples_every_time(carried, tmp_path):
    one, two = (prepare(TASK, tmp_path / name, SIZES) for name in "ab")
    assert all(one.file(split).read_bytes() == two.file(split).read_bytes() for split in data.SPLITS)


def test_missing_everywhere_is_one_clear_line(nothing_carried, monkeypatch, tmp_path):
    def unreachable(task):
        raise ConnectionError("no network\nmore lines")

    monkeypatch.setattr(data, "_read_hub", unreachable)
    with pytest.raises(TaskUnavailableError) as caught:
        prepare(TASK, tmp_path / "moods", SIZES)
    assert str(caught.value) == ("expected the package odd-carrier (nor from the hub: someone/moods: no network)")
    assert not (tmp_path / "moods").exists()


def test_hub_takes_the_place_of_a_missing_carrier(nothing_carried, monkeypatch, tmp_path):
    import datasets

    rows = [{"words": f" row {i} ", "mood": i % 2} for i in range(30)]
    monkeypatch.setattr(datasets, "load_dataset", lambda repo: {"train": rows[:20], "test": rows[20:]})
    found = prepare(TASK, tmp_path / "moods", SIZES)
    assert found.origin == "someone/moods on the hub"
    assert found.available == {"train": 17, "validation": 3, "test": 10}
    assert all(example.text == example.text.strip() for example in read_examples(found.file("train")))


texts = st.lists(st.text("ab ", max_size=4), max_size=40)


@given(st.lists(texts, min_size=1, max_size=3))
def test_no_text_stands_in_two_splits(parts):
    splits = split_examples([[Example(text, "x") for text in part] for part in parts], SIZES)
    keys = [" ".join(e.text.split()) for examples in splits.values() for e in examples]
    assert len(keys) == len(set(keys))
    assert set(keys) == {" ".join(text.split()) for part in parts for text in part} - {""}
    assert list(splits) == ["train", "validation", "test"]


def test_official_splits_stay():
    parts = [[Example(f"{name}{i}", "x") for i in range(9)] for name in ("train", "validation", "test")]
    splits = split_examples(parts, SIZES)
    for part, (name, examples) in zip(parts, splits.items(), strict=True):
        assert set(examples) == set(part), name


@pytest.mark.parametrize("task", data.TASKS, ids=lambda task: task.name)
def test_real_carriers(task, tmp_path):
    try:
        found = prepare(task, tmp_path, SIZES)
    except TaskUnavailableError as reason:
        pytest.skip(str(reason))
    assert found.used == {"train": 10, "validation": 3, "test": 4}
    labels = {example.label for split in data.SPLITS for example in read_examples(found.file(split))}
    assert labels <= set(task.labels.values())
    assert isinstance(found.file("train"), Path)

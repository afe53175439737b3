"""The table of tasks: names, suggestions, and agreement with the real data sets where they are at hand."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pyarrow.parquet
import pytest

from peft_aot.data import TRAIN, VALIDATION, load_split
from peft_aot.metrics import metric_names
from peft_aot.task import HubSource
from peft_aot.tasks import get_task, task_names

DATA = Path(os.environ.get("PEFT_AOT_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no data in {DATA}; set PEFT_AOT_DATA to a hub-layout folder"
)

GLUE = {"cola", "sst2", "mrpc", "stsb", "qqp", "mnli", "qnli", "rte", "wnli"}
SUPER_GLUE = {"boolq", "cb", "copa", "multirc", "record", "wic", "wsc", "super_glue/rte"}
EXTRA = {"trec", "banking77", "snips", "sms_spam"}

# Rows of the official splits, as their publishers count them.
OFFICIAL = {
    "cola": (8551, 1043),
    "sst2": (67349, 872),
    "mrpc": (3668, 408),
    "stsb": (5749, 1500),
    "rte": (2490, 277),
    "wnli": (635, 71),
    "cb": (250, 56),
    "copa": (400, 100),
    "multirc": (27243, 4848),
    "wic": (5428, 638),
    "wsc": (554, 104),
    "trec": (5452, 500),
    "banking77": (10003, 3080),
}


def test_every_task_of_the_benchmarks_is_known() -> None:
    assert set(task_names()) == GLUE | SUPER_GLUE | EXTRA


@pytest.mark.parametrize("name", task_names())
def test_a_task_is_consistent(name: str) -> None:
    task = get_task(name)
    assert task.name == name
    assert task.label_column in task.columns
    assert task.text_columns
    assert set(task.metrics) <= set(metric_names())
    assert (task.kind == "regression") == (not task.labels)
    assert len(set(task.labels)) == len(task.labels)


@pytest.mark.parametrize(
    ("wrong", "meant"), [("ret", "rte"), ("bolq", "boolq"), ("SST2", "sst2"), ("superglue/rte", "super_glue/rte")]
)
def test_an_unknown_task_is_refused_with_a_suggestion(wrong: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"unknown task '{wrong}'; did you mean '{meant}'\\?"):
        get_task(wrong)


def test_a_name_like_no_other_gets_the_list() -> None:
    with pytest.raises(ValueError, match="unknown task 'zzzzzz'; choose one of cola, sst2"):
        get_task("zzzzzz")


@needs_data
@pytest.mark.parametrize("name", task_names())
def test_label_names_are_those_the_data_set_declares(name: str) -> None:
    task = get_task(name)
    assert isinstance(task.source, HubSource)
    files = sorted((DATA / task.source.folder).glob("*.parquet"))
    if not files:
        pytest.skip(f"{name} is not in {DATA}")
    schema = pyarrow.parquet.read_schema(files[0])
    declared = json.loads(schema.metadata[b"huggingface"])["info"]["features"]["label"]
    assert tuple(declared.get("names", ())) == task.labels
    assert set(task.columns) <= set(schema.names)


@needs_data
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_splits_load_completely(name: str) -> None:
    task = get_task(name)
    train, validation = load_split(task, TRAIN, DATA), load_split(task, VALIDATION, DATA)
    assert (len(train.items), len(validation.items)) == OFFICIAL[name]
    assert not train.partial
    assert not validation.partial
    if task.kind == "classification":
        assert {item.label for item in train.items} == set(range(len(task.labels)))


@needs_data
@pytest.mark.parametrize(("name", "split"), [("boolq", TRAIN), ("mnli", TRAIN), ("qqp", TRAIN), ("qqp", VALIDATION)])
def test_incomplete_splits_say_so(name: str, split: str) -> None:
    assert load_split(get_task(name), split, DATA).partial


@needs_data
def test_mnli_scores_the_matched_validation_split() -> None:
    split = load_split(get_task("mnli"), VALIDATION, DATA)
    assert "validation_matched" in split.origin
    assert len(split.items) == 9815

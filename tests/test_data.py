"""Splits from local files, from a hub-layout folder and from the hub, and every refusal on the way."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from peft_aot.data import TRAIN, VALIDATION, load_split
from peft_aot.own_task import open_task, own_task, task_of
from peft_aot.task import LocalFiles
from peft_aot.task_card import TaskCard
from peft_aot.tasks import get_task
from tiny_text import write_csv, write_jsonl

ROWS = [("good film", "pos"), ("bad film", "neg"), ("fine film", "pos")]


def hub_folder(root: Path, folder: str, splits: dict[str, dict[str, list[Any]]]) -> Path:
    (root / folder).mkdir(parents=True)
    for split, columns in splits.items():
        pyarrow.parquet.write_table(pyarrow.table(columns), root / folder / f"{split}-00000-of-00001.parquet")
    return root


def test_an_own_task_learns_its_labels_from_the_training_file(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "reviews.csv", ROWS)
    validation = write_csv(tmp_path / "v.csv", [("bad", "neg")])
    task = own_task(LocalFiles(train, validation))
    assert (task.name, task.labels, task.metrics) == ("reviews", ("neg", "pos"), ("accuracy",))
    split = load_split(task, TRAIN)
    assert [item.sequences[0] for item in split.items] == [(text, None) for text, _ in ROWS]
    assert [item.label for item in split.items] == [1, 0, 1]
    assert [item.label for item in load_split(task, VALIDATION).items] == [0]
    assert not split.partial


def test_number_labels_are_class_names_sorted_by_value(tmp_path: Path) -> None:
    files = [{"text": "a", "label": value} for value in (10, 2, 0, 2)]
    task = own_task(LocalFiles(write_jsonl(tmp_path / "f.jsonl", files), write_jsonl(tmp_path / "g.jsonl", files)))
    assert task.labels == ("0", "2", "10")
    assert [item.label for item in load_split(task, TRAIN).items] == [2, 1, 0, 1]


def test_parquet_numbers_that_are_floats_are_the_same_labels(tmp_path: Path) -> None:
    path = tmp_path / "f.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", "b"], "label": [1.0, 2.0]}), path)
    assert own_task(LocalFiles(path, path)).labels == ("1", "2")


def test_regression_and_second_text(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "f.jsonl", [{"a": "x", "b": "y", "score": "2.5"}, {"a": "x", "b": "z", "score": 4}])
    task = own_task(LocalFiles(path, path, "a", "b", "score", "regression"))
    split = load_split(task, TRAIN)
    assert task.metrics == ("pearson", "spearman")
    assert task.labels == ()
    assert [item.label for item in split.items] == [2.5, 4.0]
    assert split.items[1].sequences == (("x", "z"),)


def test_without_a_validation_file_every_tenth_row_is_held_out(tmp_path: Path) -> None:
    rows = [(f"t{index}", "ab"[index % 2]) for index in range(25)]
    task = own_task(LocalFiles(write_csv(tmp_path / "f.csv", rows)))
    validation = load_split(task, VALIDATION)
    training = load_split(task, TRAIN)
    assert [item.sequences[0][0] for item in validation.items] == ["t0", "t10", "t20"]
    assert len(training.items) == 22
    assert not set(training.items) & set(validation.items)


def test_a_limit_takes_an_even_sample(tmp_path: Path) -> None:
    rows = [(f"t{index}", "ab"[index % 2]) for index in range(10)]
    path = write_csv(tmp_path / "f.csv", rows)
    split = load_split(own_task(LocalFiles(path, path)), TRAIN, limit=4)
    assert [item.sequences[0][0] for item in split.items] == ["t0", "t2", "t5", "t7"]
    assert split.partial
    assert not load_split(own_task(LocalFiles(path, path)), TRAIN, limit=10).partial
    with pytest.raises(ValueError, match="expected a limit of at least 1 row, got 0; pass a positive number"):
        load_split(own_task(LocalFiles(path, path)), TRAIN, limit=0)


def test_a_limit_breaks_no_group(tmp_path: Path) -> None:
    sizes = (3, 5, 2, 4, 6, 4)
    questions = [question for question, size in enumerate(sizes) for _ in range(size)]
    columns: dict[str, list[Any]] = {
        "paragraph": ["p"] * len(questions),
        "question": [f"q{question}" for question in questions],
        "answer": [f"a{place}" for place in range(len(questions))],
        "label": [place % 2 for place in range(len(questions))],
    }
    root = hub_folder(tmp_path, "super_glue/multirc", {"validation": columns})
    for limit in range(1, len(questions) + 1):
        split = load_split(get_task("multirc"), VALIDATION, root, limit)
        kept = Counter(item.group for item in split.items)
        assert kept and all(size == sizes[int(group[-1])] for group, size in kept.items())
        assert len(split.items) <= limit or len(kept) == 1
        assert len(split.items) >= limit - 2 * max(sizes)
        assert split.partial == (limit < len(questions))
    assert [item.group[-1] for item in load_split(get_task("multirc"), VALIDATION, root, 9).items] == list("0003333")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("txt,label\na,b\nc,d\n", r"expected a column 'text' in .*, got txt, label; did you mean 'txt'\?"),
        ("text,lable\na,b\nc,d\n", r"expected a column 'label' in .*, got text, lable; did you mean 'lable'\?"),
        ("", r"expected a column 'text' in .*, got no columns; add a header line"),
        (
            "text,label\na,b\n ,c\n",
            r"expected text in column 'text', got nothing in .*f\.csv, line 3; fill it or delete",
        ),
        ("text,label\na,b\nx,c\ny,\n", r"expected a label in column 'label', got nothing in .*, line 4; fill it"),
        ("text,label\na,b\nc,b\n", r"expected at least 2 different labels in .*, got 1 in column 'label'; check"),
        ("text,label\n", r"expected at least 2 different labels in .*, got 0"),
    ],
)
def test_bad_training_files_are_refused(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "f.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        load_split(open_task(LocalFiles(path, path)), TRAIN)


def test_a_label_unseen_in_training_is_refused(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "f.csv", ROWS)
    task = own_task(LocalFiles(train, write_csv(tmp_path / "g.csv", [("so-so", "pos"), ("hm", "nog")])))
    message = r"expected a label seen in training, got 'nog' in .*g\.csv, line 3; did you mean 'neg'\?"
    with pytest.raises(ValueError, match=message):
        load_split(task, VALIDATION)


def test_an_empty_validation_file_is_refused(tmp_path: Path) -> None:
    task = own_task(LocalFiles(write_csv(tmp_path / "f.csv", ROWS), write_csv(tmp_path / "g.csv", [])))
    with pytest.raises(ValueError, match=r"expected rows in .*g\.csv, got none; pass a file with data"):
        load_split(task, VALIDATION)


@pytest.mark.parametrize("label", ["much", "nan", "inf"])
def test_a_regression_label_that_is_no_number_is_refused(tmp_path: Path, label: str) -> None:
    path = write_csv(tmp_path / "f.csv", [("a", "1"), ("b", label)])
    task = own_task(LocalFiles(path, path, kind="regression"))
    with pytest.raises(ValueError, match=f"expected a number as label, got '{label}' in .*, line 3; correct it"):
        load_split(task, TRAIN)


def test_a_hub_layout_folder_is_read_and_partial_files_are_reported(tmp_path: Path) -> None:
    columns = {"sentence1": ["a", "b"], "sentence2": ["c", "d"], "label": [0, 1]}
    root = hub_folder(tmp_path, "glue/rte", {"train_partial": columns, "validation": columns})
    train, validation = (load_split(get_task("rte"), split, root) for split in (TRAIN, VALIDATION))
    assert train.partial
    assert not validation.partial
    assert [item.label for item in train.items] == [0, 1]
    assert train.items[0].sequences == (("a", "c"),)


def test_a_known_task_takes_label_names_too(tmp_path: Path) -> None:
    root = hub_folder(tmp_path, "extra/snips", {"train": {"sentence": ["a"], "label": ["PlayMusic"]}})
    assert load_split(get_task("snips"), TRAIN, root).items[0].label == 3


def test_one_empty_text_of_an_official_pair_is_kept_but_an_empty_row_is_not(tmp_path: Path) -> None:
    columns = {"question1": ["a", ""], "question2": ["", ""], "label": [0, 1]}
    root = hub_folder(tmp_path, "glue/qqp", {"train": {name: values[:1] for name, values in columns.items()}})
    assert load_split(get_task("qqp"), TRAIN, root).items[0].sequences == (("a", ""),)
    root = hub_folder(tmp_path / "two", "glue/qqp", {"train": columns})
    with pytest.raises(ValueError, match=r"expected text in column 'question1', got nothing in .*, row 1"):
        load_split(get_task("qqp"), TRAIN, root)


def test_hidden_and_wrong_label_ids_are_refused(tmp_path: Path) -> None:
    root = hub_folder(tmp_path, "glue/cola", {"test": {"sentence": ["a"], "label": [-1]}})
    with pytest.raises(
        ValueError, match=r"expected a label, got the -1 of a hidden label in .*, row 0; choose a split"
    ):
        load_split(get_task("cola"), "test", root)
    root = hub_folder(tmp_path / "two", "glue/cola", {"train": {"sentence": ["a"], "label": [2]}})
    with pytest.raises(
        ValueError, match=r"expected a label seen in training, got '2' in .*; choose one of unacceptable"
    ):
        load_split(get_task("cola"), TRAIN, root)


def test_missing_folders_and_splits_are_refused(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"expected a folder .*glue/rte, got none; pass the --data-dir that holds"
    ):
        load_split(get_task("rte"), TRAIN, tmp_path)
    columns = {"question": ["a"], "sentence": ["b"], "label": [0]}
    root = hub_folder(tmp_path, "glue/qnli", {"validation": columns})
    message = r"expected train-\*\.parquet in .*glue/qnli, got validation; add the train split or leave --data-dir out"
    with pytest.raises(FileNotFoundError, match=message):
        load_split(get_task("qnli"), TRAIN, root)


def test_without_a_network_the_message_says_what_to_pass() -> None:
    message = (
        r"expected the split 'train' of the data set 'nyu-mll/glue' from the hub, got .*; pass --data-dir DIR with"
    )
    with pytest.raises(ConnectionError, match=message):
        load_split(get_task("rte"), TRAIN)


def test_the_hub_is_asked_for_the_right_split_and_columns_are_renamed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []

    def load_dataset(repo: str, config: str | None, split: str, revision: str | None) -> datasets.Dataset:
        asked.append((repo, config, split, revision))
        return datasets.Dataset.from_dict({"text": ["a"], "coarse_label": [5], "fine_label": [0]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    split = load_split(get_task("trec"), VALIDATION)
    assert asked == [("CogComp/trec", None, "test", "refs/convert/parquet")]
    assert (split.items[0].label, split.origin) == (5, "CogComp/trec")


def test_a_hub_set_without_validation_holds_out_every_fifth_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(repo: str, config: str | None, split: str, revision: str | None) -> datasets.Dataset:
        assert split == "train"
        return datasets.Dataset.from_dict({"sms": [str(i) for i in range(11)], "label": [0] * 11})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    validation = load_split(get_task("sms_spam"), VALIDATION)
    assert [item.sequences[0][0] for item in validation.items] == ["0", "5", "10"]
    assert len(load_split(get_task("sms_spam"), TRAIN).items) == 8


def test_a_card_gives_back_the_task_it_was_written_for(tmp_path: Path) -> None:
    train = write_csv(tmp_path / "f.csv", ROWS)
    card = TaskCard(
        "reviews",
        "classification",
        ("text",),
        "label",
        ("neg", "pos", "mixed"),
        ("accuracy", "macro_f1"),
        64,
        "model",
        "lora",
        "fp32",
        own_files=(str(train), str(train)),
    )
    task = task_of(card)
    assert (task.name, task.labels, task.metrics) == ("reviews", card.labels, card.metrics)
    assert len(load_split(task, VALIDATION).items) == 1
    other = write_csv(tmp_path / "g.csv", [("a", "mixed"), ("b", "pos")])
    assert [item.label for item in load_split(task_of(card, other), VALIDATION).items] == [2, 1]


def test_a_card_of_a_known_task_scores_a_file_if_it_reads_texts(tmp_path: Path) -> None:
    rte = TaskCard(
        "rte",
        "classification",
        ("sentence1", "sentence2"),
        "label",
        ("entailment", "not_entailment"),
        ("accuracy",),
        64,
        "model",
        "lora",
        "fp32",
    )
    assert task_of(rte) is get_task("rte")
    path = write_csv(tmp_path / "f.csv", [("a,b", "entailment")], header="sentence1,sentence2,label")
    assert load_split(task_of(rte, path), VALIDATION).items[0].sequences == (("a", "b"),)
    wic = TaskCard("wic", "classification", ("word", "s1", "s2"), "label", ("a",), (), 64, "model", "lora", "fp32")
    with pytest.raises(ValueError, match="expected a task that reads one text or a pair from a file, got 'wic'; pass"):
        task_of(wic, path)

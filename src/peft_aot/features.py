"""Items as token ids, and batches of them. The seam between data and models; knows neither."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch.utils.data import Dataset
from transformers import DataCollatorForMultipleChoice, DataCollatorWithPadding, PreTrainedTokenizerBase

from peft_aot.rendering import Item
from peft_aot.task import Kind

Feature: TypeAlias = dict[str, Any]
Collate: TypeAlias = Callable[[list[Feature]], dict[str, torch.Tensor]]


class Features(Dataset[Feature]):
    """Tokenized items, in order.

    Attributes:
        rows: One feature per item; for multiple choice each value holds one list per choice.
        lengths: Tokens of each item; of its longest choice for multiple choice.
    """

    def __init__(self, rows: Sequence[Feature], lengths: Sequence[int]) -> None:
        self.rows = rows
        self.lengths = lengths

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Feature:
        return self.rows[index]


def encode(items: Sequence[Item], tokenizer: PreTrainedTokenizerBase, kind: Kind, max_length: int) -> Features:
    """Tokenize items; what is longer than `max_length` tokens is cut, the longer text of a pair first.

    Labels go along as "labels" when the items have them. Padding is left to `collator`.
    """
    sequences = [sequence for item in items for sequence in item.sequences]
    if not sequences:
        return Features([], [])
    pairs = [pair for _, pair in sequences]
    encoded = tokenizer(
        [text for text, _ in sequences],
        None if all(pair is None for pair in pairs) else [pair or "" for pair in pairs],
        truncation="longest_first",
        max_length=max_length,
    )
    rows: list[Feature] = []
    lengths: list[int] = []
    start = 0
    for item in items:
        stop = start + len(item.sequences)
        row: Feature = {name: encoded[name][start:stop] for name in encoded}
        lengths.append(max(len(ids) for ids in row["input_ids"]))
        if kind != "multiple_choice":
            row = {name: values[0] for name, values in row.items()}
        if item.label is not None:
            row["labels"] = item.label
        rows.append(row)
        start = stop
    return Features(rows, lengths)


def collator(tokenizer: PreTrainedTokenizerBase, kind: Kind) -> Collate:
    """Make the function that pads features to a batch: (B, T), or (B, choices, T) for multiple choice."""
    if kind != "multiple_choice":
        padding: Collate = DataCollatorWithPadding(tokenizer)
        return padding
    choices = DataCollatorForMultipleChoice(tokenizer)

    def pad_choices(features: list[Feature]) -> dict[str, torch.Tensor]:
        # The collator insists on labels; a prediction has none.
        labelled = all("labels" in feature for feature in features)
        batch: dict[str, torch.Tensor] = choices([{"labels": 0, **feature} for feature in features])
        return batch if labelled else {name: value for name, value in batch.items() if name != "labels"}

    return pad_choices

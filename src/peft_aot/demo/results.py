"""What the comparison found, as frozen data: rows, the conditions they were measured under, and their file.

Knows nothing of models, tables and pictures.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One method on the task of the comparison.

    Attributes:
        title: The method, for people.
        ours: True for AoT, which a picture sets apart.
        score: Share of the test examples it gets right, 0 to 1.
        trainable_parameters: Numbers trained, head included.
        stored_bytes: Bytes to keep per task: adapter, head, table if it has one.
        train_seconds: Seconds to train, evaluations included.
        batch_milliseconds: Median time to answer one batch.
        ratio: Median time relative to the bare backbone in the same round.
        ratio_low: First quartile of that ratio.
        ratio_high: Third quartile of that ratio.
    """

    title: str
    ours: bool
    score: float
    trainable_parameters: int
    stored_bytes: int
    train_seconds: float
    batch_milliseconds: float
    ratio: float
    ratio_low: float
    ratio_high: float


@dataclass(frozen=True)
class Comparison:
    """Every method on one task, measured in one run.

    Attributes:
        task: The task, for people.
        model: Hub id or local path of the backbone.
        machine: Processor, cores, and versions.
        train_examples: Examples each method was trained on.
        epochs: Passes over them.
        test_examples: Examples the score was computed on; none of them was seen in training.
        batch_size: Sentences per timed batch.
        batch_tokens: Tokens per sentence of the timed batch, padding included.
        rounds: Rounds timed.
        backbone_milliseconds: Median time of the bare backbone on that batch.
        fused_difference: max |logit of AoT fused - logit of AoT from factors| on the timed batch.
        rows: The methods.
    """

    task: str
    model: str
    machine: str
    train_examples: int
    epochs: float
    test_examples: int
    batch_size: int
    batch_tokens: int
    rounds: int
    backbone_milliseconds: float
    fused_difference: float
    rows: tuple[Row, ...]


def save_comparison(comparison: Comparison, path: Path) -> None:
    """Write a comparison as JSON, every number in full."""
    path.write_text(json.dumps(asdict(comparison), indent=2) + "\n", encoding="utf-8")


def load_comparison(path: Path) -> Comparison:
    """Read what `save_comparison` wrote."""
    raw = json.loads(path.read_text(encoding="utf-8"))
    return Comparison(**{**raw, "rows": tuple(Row(**row) for row in raw["rows"])})

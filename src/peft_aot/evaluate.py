"""Score a trained adapter on a split: options in, result out. Knows nothing of terminals."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from peft_aot.data import VALIDATION, load_split
from peft_aot.features import collator, encode
from peft_aot.inference import EVALUATION_BATCH, compute_logits
from peft_aot.loading import load_trained, read_card
from peft_aot.metrics import compute_scores, mean_score
from peft_aot.own_task import task_of
from peft_aot.task_card import TaskCard


@dataclass(frozen=True)
class EvaluateOptions:
    """What to score.

    Attributes:
        directory: The output directory of a training run.
        model: Hub id or path of the backbone, if it is not where the task card says.
        data_dir: Directory in hub layout to read known tasks from instead of the hub.
        split: Split of a known task.
        file: Local file to score on, for tasks that read one text or a pair.
        limit: Use only this many examples (an even sample).
        batch_size: Examples per forward pass.
        precision: "fp32" or "bf16"; None takes what the scores in the card were computed in.
    """

    directory: Path
    model: str | None = None
    data_dir: Path | None = None
    split: str = VALIDATION
    file: Path | None = None
    limit: int | None = None
    batch_size: int = EVALUATION_BATCH
    precision: Literal["fp32", "bf16"] | None = None


@dataclass(frozen=True)
class EvaluateResult:
    """How good the adapter is.

    Attributes:
        card: The task card beside it.
        split: Split that was scored.
        origin: File, folder or hub id of the rows.
        scores: Scores by name.
        score: Their mean.
        examples: Rows scored.
        partial: Whether rows of the split are missing, in the source or by `limit`.
        seconds: Seconds the forward passes took.
    """

    card: TaskCard
    split: str
    origin: str
    scores: dict[str, float]
    score: float
    examples: int
    partial: bool
    seconds: float


def evaluate(options: EvaluateOptions) -> EvaluateResult:
    """Score the adapter in `options.directory`.

    Raises:
        ValueError, FileNotFoundError, ConnectionError: Bad input; the message says what to pass instead.
    """
    task = task_of(read_card(options.directory), options.file)
    split = load_split(task, options.split, options.data_dir, options.limit)
    trained = load_trained(options.directory, options.model)
    features = encode(split.items, trained.tokenizer, task.kind, trained.card.max_length)
    started = time.monotonic()
    logits = compute_logits(
        trained.model,
        features,
        collator(trained.tokenizer, task.kind),
        trained.device,
        options.precision or trained.card.precision,
        options.batch_size,
    )
    seconds = time.monotonic() - started
    scores = compute_scores(task.metrics, split.items, logits)
    return EvaluateResult(
        trained.card,
        split.name,
        split.origin,
        scores,
        mean_score(scores),
        len(split.items),
        split.partial,
        seconds,
    )

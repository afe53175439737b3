"""Measuring trained adapters beside each other: accuracy on unseen examples, size, and speed within one run.

Each candidate is loaded from disk, as a user would, onto a backbone of its own. Knows nothing of how it was trained but
the numbers it is told.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import transformers

from peft_aot.demo.data import Example
from peft_aot.demo.results import Comparison, Row
from peft_aot.features import collator, encode
from peft_aot.inference import compute_logits
from peft_aot.loading import Trained, load_backbone, load_trained
from peft_aot.machine import describe_processor
from peft_aot.rendering import Item
from peft_aot.timing import Timing, interleave

BARE = "bare backbone"
BATCH_SIZE = 16
FLOAT16_TOLERANCE = 2e-3  # what float16 rows may change in a logit

Batch = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Candidate:
    """A trained adapter and what its training is known to have cost.

    Attributes:
        title: The method, for people.
        directory: Where it was saved.
        trainable_parameters: Numbers trained.
        train_seconds: Seconds it took.
        ours: True for AoT.
    """

    title: str
    directory: Path
    trainable_parameters: int
    train_seconds: float
    ours: bool = False


@dataclass(frozen=True)
class Conditions:
    """What all candidates share; `Comparison` describes the fields.

    Attributes:
        task: The task, for people.
        backbone: The backbone, for people.
        train_examples: Examples each was trained on.
        epochs: Passes over them.
        rounds: Rounds to time.
    """

    task: str
    backbone: str
    train_examples: int
    epochs: float
    rounds: int = 40


def compare(
    candidates: Sequence[Candidate],
    equal: tuple[str, str],
    test: Sequence[Example],
    conditions: Conditions,
    model: str,
    on_step: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Measure every candidate.

    Args:
        candidates: At least one.
        equal: Titles of two candidates that must give the same logits: AoT fused and AoT from factors.
        test: Examples that none was trained on.
        conditions: What all candidates share.
        model: Hub id or local path of the backbone.
        on_step: Told in words what is being done.

    Raises:
        ValueError: A candidate's logits are not finite, or those of the pair in `equal` differ.
    """
    trained: dict[str, Trained] = {}
    scores: dict[str, float] = {}
    for candidate in candidates:
        on_step(f"accuracy of {candidate.title}")
        trained[candidate.title] = load_trained(candidate.directory, model)
        scores[candidate.title] = accuracy(trained[candidate.title], test)
    any_one = next(iter(trained.values()))
    batch = timed_batch(any_one, test)
    bare: torch.nn.Module = load_backbone(model, "classification", any_one.card.labels).model
    models = {BARE: bare.eval().to(any_one.device), **{title: one.model for title, one in trained.items()}}
    on_step("checking that outputs agree")
    difference = check_outputs({name: _logits(one, batch) for name, one in models.items()}, equal)
    on_step(f"timing {len(models)} models, {conditions.rounds} interleaved rounds")
    timings = interleave(
        {name: partial(_logits, one, batch) for name, one in models.items()},
        reference=BARE,
        rounds=conditions.rounds,
        synchronize=None if any_one.device.type == "cpu" else torch.accelerator.synchronize,
    )
    rows, tokens = batch["input_ids"].shape
    return Comparison(
        task=conditions.task,
        model=conditions.backbone,
        machine=describe_machine(any_one.device),
        train_examples=conditions.train_examples,
        epochs=conditions.epochs,
        test_examples=len(test),
        batch_size=rows,
        batch_tokens=tokens,
        rounds=conditions.rounds,
        backbone_milliseconds=timings[BARE].milliseconds,
        fused_difference=difference,
        rows=tuple(_row(one, scores[one.title], timings[one.title]) for one in candidates),
    )


def accuracy(trained: Trained, examples: Sequence[Example]) -> float:
    """Return the share of examples whose most probable label is the right one."""
    items = [Item(((example.text, None),)) for example in examples]
    features = encode(items, trained.tokenizer, "classification", trained.card.max_length)
    collate = collator(trained.tokenizer, "classification")
    found = compute_logits(trained.model, features, collate, trained.device).argmax(axis=1)
    labels = trained.card.labels
    right: list[bool] = [labels[i] == example.label for i, example in zip(found.tolist(), examples, strict=True)]
    return sum(right) / len(right)


def timed_batch(trained: Trained, examples: Sequence[Example]) -> Batch:
    """Encode the first examples as one batch, padded to the longest of them."""
    texts = [example.text for example in examples[:BATCH_SIZE]]
    encoded = trained.tokenizer(
        texts, padding=True, truncation=True, max_length=trained.card.max_length, return_tensors="pt"
    )
    return {name: value.to(trained.device) for name, value in encoded.items()}


def check_outputs(logits: Mapping[str, torch.Tensor], equal: tuple[str, str]) -> float:
    """Refuse logits that make a timing meaningless.

    Args:
        logits: (B, labels) by name.
        equal: Two of the names.

    Returns:
        max |difference| between the two in `equal`.

    Raises:
        ValueError: Logits are not finite, or the two differ by more than float16 rows explain.
    """
    for name, values in logits.items():
        if not bool(torch.isfinite(values).all()):
            raise ValueError(f"expected finite logits of {name}, got {values.tolist()}; train it again with --restart")
    difference = float((logits[equal[0]] - logits[equal[1]]).abs().max())
    if difference > FLOAT16_TOLERANCE:
        raise ValueError(
            f"expected {equal[0]} and {equal[1]} to differ by at most {FLOAT16_TOLERANCE}, got {difference:.2g}; "
            f"make the table again with `peft-aot fuse`"
        )
    return difference


def stored_bytes(directory: Path) -> int:
    """Return the size of what has to be kept of an adapter: its configuration, tensors and tables."""
    kept = (path for path in directory.iterdir() if path.suffix in {".safetensors", ".json"})
    return sum(path.stat().st_size for path in kept)


def describe_machine(device: torch.device) -> str:
    """Return processor or accelerator, cores, and versions, in one line."""
    return (
        f"{describe_processor(device)}; Python {platform.python_version()}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}"
    )


def _logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(**batch).logits
    return logits


def _row(candidate: Candidate, score: float, timing: Timing) -> Row:
    return Row(
        title=candidate.title,
        ours=candidate.ours,
        score=score,
        trainable_parameters=candidate.trainable_parameters,
        stored_bytes=stored_bytes(candidate.directory),
        train_seconds=candidate.train_seconds,
        batch_milliseconds=timing.milliseconds,
        ratio=timing.ratio,
        ratio_low=timing.ratio_low,
        ratio_high=timing.ratio_high,
    )

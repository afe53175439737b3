"""What is asked: real texts, each for a task drawn at random."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from peft_aot.data import load_split
from peft_aot.demo.data import TASKS, Sizes, prepare, read_examples
from peft_aot.serving import Request
from peft_aot.tasks import get_task

SETS = ("sst2", "trec")
MOST = 5000
"""Texts of each set."""


def read_texts(data_dir: Path | None) -> tuple[list[str], str]:
    """Return texts in random order, and what they are.

    Args:
        data_dir: Folder with data sets as on the hub; without one the texts of the demo are taken.
    """
    if data_dir is not None:
        found = []
        for name in SETS:
            texts = [item.sequences[0][0] for item in load_split(get_task(name), "train", data_dir).items]
            found += random.Random(0).sample(texts, min(MOST, len(texts)))
        source = "train splits of " + " and ".join(SETS)
    else:
        with tempfile.TemporaryDirectory() as folder:
            found = [e.text for e in read_examples(prepare(TASKS[0], Path(folder), Sizes()).file("train"))]
        source = "the demo's"
    random.Random(0).shuffle(found)
    return found, f"{len(found)} texts, {source}"


def weights(tasks: int, mix: str) -> list[float]:
    """Return how often each task is asked for: the same, or by Zipf's law the k-th 1/k as often as the first.

    Raises:
        ValueError: Another mix.
    """
    if mix not in {"uniform", "zipf"}:
        raise ValueError(f"expected the mix uniform or zipf, got {mix!r}; pass one of these")
    return [1.0 if mix == "uniform" else 1 / (rank + 1) for rank in range(tasks)]


def demand(texts: Sequence[str], tasks: int, mix: str, seed: int) -> Iterator[Request]:
    """Yield requests without end; with one seed, the texts are the same whatever the number of tasks."""
    which, what = random.Random(f"tasks {seed}"), random.Random(f"texts {seed}")
    shares = weights(tasks, mix)
    while True:
        drawn = zip(which.choices(range(tasks), shares, k=1000), what.choices(texts, k=1000), strict=True)
        yield from (Request(str(task), text) for task, text in drawn)

"""What all sections of the serving benchmark measure on, and the book they write their results into."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich.console import Console

from _record import append
from peft_aot.loading import pick_precision
from peft_aot.serving.body import Precision

NAME = "serving_load"
CPU = torch.device("cpu")
console = Console()


def quiet() -> None:
    """Let libraries print nothing beside the results, and look for nothing on the hub."""
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


@dataclass(frozen=True)
class Book:
    """Results as they are recorded: a point that a run has already is not measured again.

    Attributes:
        folder: Where `serving_load.jsonl` is.
        run: Name of the run; ratios are taken within one.
    """

    folder: Path
    run: str

    def lines(self, section: str, **point: Any) -> list[dict[str, Any]]:
        """Return what this run has recorded of a point."""
        path = self.folder / f"{NAME}.jsonl"
        every = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []
        wanted = {"run": self.run, "section": section, **point}
        return [line for line in every if all(line.get(key) == value for key, value in wanted.items())]

    def has(self, section: str, **point: Any) -> bool:
        """Return whether this run has recorded a point, and say so."""
        found = bool(self.lines(section, **point))
        if found:
            console.print(f"{section} {point}: is there already")
        return found

    def add(self, section: str, **facts: Any) -> None:
        """Record a point."""
        append(NAME, {"run": self.run, "section": section, **facts}, self.folder)


@dataclass(frozen=True)
class Setting:
    """What is measured on.

    Attributes:
        model: Folder of the backbone.
        texts: Real texts.
        source: What they are, for the record.
        counts: Numbers of tasks, the smallest first.
        mixes: How tasks are drawn: "uniform", "zipf".
        budget: Bytes for rows of an engine in this process.
        precision: Of the weights.
        scratch: A folder for what is thrown away afterwards.
        book: Where results go.
    """

    model: Path
    texts: Sequence[str]
    source: str
    counts: Sequence[int]
    mixes: Sequence[str]
    budget: int
    scratch: Path
    book: Book
    precision: Precision = "auto"

    @property
    def name(self) -> str:
        """Name of the backbone, without a path of this machine."""
        return self.model.name

    @property
    def dtype(self) -> torch.dtype:
        """Format of the weights, as an engine takes them."""
        return torch.bfloat16 if pick_precision(self.precision, CPU) == "bf16" else torch.float32

    @property
    def tolerance(self) -> float:
        """Largest difference of a probability between a batch and a text alone."""
        return 5e-2 if self.dtype == torch.bfloat16 else 1e-3

    def facts(self) -> dict[str, Any]:
        """Return what every line says of it."""
        return {"model": self.name, "dtype": str(self.dtype).removeprefix("torch."), "texts": self.source}

"""What every line of results says beside its figures, and how it gets into its file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from peft_aot.compare.execute import now, versions
from peft_aot.machine import describe_processor
from peft_aot.timing import Timing

RESULTS = Path(__file__).parent / "results"


def append(name: str, record: dict[str, Any], folder: Path = RESULTS) -> None:
    """Add a line to `results/NAME.jsonl`, or to that file in another folder."""
    record = {
        **record,
        "versions": versions(),
        "machine": describe_processor(torch.device("cpu")),
        "threads": torch.get_num_threads(),
        "finished": now(),
    }
    with (folder / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def figures(timing: Timing) -> dict[str, Any]:
    """Return a timing as it is recorded: the ratio, its quartiles and every sample in milliseconds."""
    return {
        "ratio": round(timing.ratio, 4),
        "ratio_quartiles": [round(timing.ratio_low, 4), round(timing.ratio_high, 4)],
        "samples_ms": [round(sample, 3) for sample in timing.samples],
    }

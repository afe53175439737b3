"""How peers are timed and recorded: by this project's own rules, in environments that this project is not in.

Peers pin versions that it cannot share, so nothing here imports `peft_aot`; two of its files need no more than the
standard library and torch, and are loaded by path: what shuffles and relates the timings, and what names the machine.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

SOURCE = Path(__file__).resolve().parents[2] / "src" / "peft_aot"
RESULTS = Path(__file__).resolve().parents[1] / "results" / "peers.jsonl"
BACKBONES: dict[str, tuple[str, dict[str, int]]] = {
    "roberta-base-size": ("roberta", {"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1}),
    "minilm-size": (
        "bert",
        {"vocab_size": 30_522, "hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536},
    ),
}
# Largest difference of a hidden state (they are normalized, so near 1) between an example in a mixed batch and the
# same example with its adapter alone; the backbone must be ten times as far.
TOLERANCE = {"float32": 1e-4, "bfloat16": 0.05}


@dataclass(frozen=True)
class Point:
    """A batch to measure.

    Attributes:
        batch: Examples.
        length: Tokens of each.
        tasks: How many distinct tasks the examples are of; neighbours share one.
    """

    batch: int
    length: int
    tasks: int

    def sizes(self) -> list[int]:
        """Return how many examples each task has, as even as can be."""
        return [self.batch // self.tasks + (number < self.batch % self.tasks) for number in range(self.tasks)]

    def ids(self) -> Tensor:
        """Return tokens without padding (batch, length), the same each time."""
        shape = (self.batch, self.length)
        return torch.randint(1000, 20_000, shape, generator=torch.Generator().manual_seed(1))


def load(name: str) -> ModuleType:
    """Load a file of this project that stands on its own, without the package around it."""
    spec = importlib.util.spec_from_file_location(f"_own_{name}", SOURCE / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(f"expected {name}.py in {SOURCE}, got none; run this script inside the repository")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def parse(description: str | None) -> argparse.Namespace:
    """Read the command line; the points come as `points`, without those that have more tasks than examples."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbone", choices=BACKBONES, default="roberta-base-size")
    parser.add_argument("--dtype", choices=TOLERANCE, default="float32")
    parser.add_argument("--shapes", default="1x16,8x64", help="batches, as EXAMPLESxTOKENS")
    parser.add_argument("--tasks", default="1,8,B", help="distinct tasks; B is as many as there are examples")
    parser.add_argument("--rounds", type=int, default=30, help="rounds that count")
    parser.add_argument("--threads", type=int, default=None, help="of torch; default: as torch chooses")
    parser.add_argument("--output", type=Path, default=RESULTS, help="JSON lines are added to it")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    arguments.points = []
    for shape in arguments.shapes.split(","):
        batch, length = (int(side) for side in shape.split("x"))
        counts = {batch if tasks == "B" else int(tasks) for tasks in arguments.tasks.split(",")}
        arguments.points += [Point(batch, length, tasks) for tasks in sorted(counts) if tasks <= batch]
    return arguments


def check(point: Point, dtype: str, mixed: Tensor, alone: Iterable[Tensor], bare: Tensor) -> None:
    """Raise unless a mixed batch is its adapters one at a time, and none of its examples the backbone's.

    Args:
        point: The batch.
        dtype: Key of `TOLERANCE`.
        mixed: Outputs of the mixed batch, examples first.
        alone: Outputs of each task's examples with its adapter alone, in order.
        bare: Outputs of the backbone.

    Raises:
        RuntimeError: The outputs are not as said; timings of them would mean nothing.
    """
    tolerance = TOLERANCE[dtype]
    wrong = _farthest(mixed, torch.cat(list(alone))).max().item()
    if not wrong <= tolerance:
        raise RuntimeError(f"expected {point} to be within {tolerance} of one adapter at a time, got {wrong:.2g}")
    change = _farthest(mixed, bare).min().item()
    if not change >= 10 * tolerance:
        raise RuntimeError(f"expected {point} to differ by {10 * tolerance} from the backbone, got {change:.2g}")


def record(output: Path, packages: Iterable[str], timings: dict[str, Any], name: str, **facts: Any) -> None:
    """Show one candidate's ratio to the backbone and add it to the results, with all samples.

    Args:
        output: File of JSON lines.
        packages: Distributions whose versions are recorded.
        timings: What `interleave` gave; the reference is called "backbone".
        name: The candidate.
        facts: What else the line says, first.
    """
    timing = timings[name]
    line = {
        **facts,
        "method": name,
        "ratio": round(timing.ratio, 4),
        "ratio_quartiles": [round(timing.ratio_low, 4), round(timing.ratio_high, 4)],
        "samples_ms": [round(sample, 3) for sample in timing.samples],
        "backbone_samples_ms": [round(sample, 3) for sample in timings["backbone"].samples],
        "versions": {package: version(package) for package in packages},
        "machine": load("machine").describe_processor(torch.device("cpu")),
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with output.open("a", encoding="utf-8") as file:
        file.write(json.dumps(line) + "\n")
    shape = f"{facts['batch']} x {facts['length']}, {facts['tasks']} tasks"
    quartiles = f"{timing.ratio_low:.3f}-{timing.ratio_high:.3f}"
    times = f"{timing.milliseconds:.1f} ms over {timings['backbone'].milliseconds:.1f} ms"
    print(f"{shape}, {name}: {timing.ratio:.3f} ({quartiles}) of the backbone, {times}", flush=True)


def _farthest(one: Tensor, other: Tensor) -> Tensor:
    return (one.float() - other.float()).abs().flatten(1).amax(dim=1)

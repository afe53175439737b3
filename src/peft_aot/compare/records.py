"""What a comparison remembers: one JSON line per finished run and per measured cost, in files that only grow.

A line that cannot be read (a crash cut it short) is kept where it is, ignored, and told of. Knows nothing of training.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Run:
    """One training run of a comparison.

    Attributes:
        task: Name of the task.
        method: Name of the method.
        trial: Number of the settings in the method's search order, from 0.
        settings: Values of the search space's axes, such as `{"learning_rate": 1e-3, "rank": 64}`.
        seed: Seed of head, adapter, order of examples and dropout.
    """

    task: str
    method: str
    trial: int
    settings: dict[str, Any]
    seed: int

    @property
    def key(self) -> tuple[str, ...]:
        """What identifies the run within one protocol; the trial's number does not."""
        return (self.task, self.method, json.dumps(self.settings, sort_keys=True), str(self.seed))


@dataclass(frozen=True)
class RunRecord:
    """A finished run.

    Attributes:
        task: Name of the task.
        method: Name of the method.
        trial: Number of the settings in the method's search order.
        settings: Values of the search space's axes.
        seed: The run's seed.
        status: "done", or "failed" for a run that diverged or broke.
        reason: Why it failed; empty for a finished one.
        score: Mean of the task's metrics at the best epoch, or None for a failed run.
        scores: The metrics at the best epoch by name.
        history: One entry per evaluation: epoch, step, loss (training), score, seconds.
        partial: Names of the splits of which official rows were missing ("train", "validation").
        train_examples: Examples trained on.
        trained_parameters: Numbers trained, head included.
        stored_bytes: Bytes of the saved adapter and head, without a fused table.
        peak_memory_bytes: Most memory that the process (on an accelerator: its tensors) took beyond what it had at the
            start of the run, or None if unknown.
        train_seconds: Seconds of training, evaluations included.
        precision: "fp32" or "bf16", the arithmetic used.
        protocol: What all runs of the comparison share, and a hash of the task's data: "files" of an own one, "rows" of
            a known one (which lines of earlier versions lack).
        versions: Package -> version.
        machine: Processor or accelerator, threads.
        finished: UTC time, ISO 8601.
        config: The adapter's whole PEFT configuration, what it leaves at None left out; empty for methods without one,
            failed runs, and lines of earlier versions.
    """

    task: str
    method: str
    trial: int
    settings: dict[str, Any]
    seed: int
    status: Literal["done", "failed"]
    reason: str
    score: float | None
    scores: dict[str, float]
    history: list[dict[str, float | None]]
    partial: list[str]
    train_examples: int
    trained_parameters: int
    stored_bytes: int
    peak_memory_bytes: int | None
    train_seconds: float
    precision: str
    protocol: dict[str, Any]
    versions: dict[str, str]
    machine: str
    finished: str
    config: dict[str, Any] = field(default_factory=dict)

    @property
    def run(self) -> Run:
        """The run it records."""
        return Run(self.task, self.method, self.trial, self.settings, self.seed)


@dataclass(frozen=True)
class CostRecord:
    """What one method costs at inference.

    Attributes:
        method: Name of the method.
        variant: How the adapter was served: "" as PEFT loads it, or for AoT "table" (fused) and "factors".
        ratio: Median over rounds of its time divided by the bare backbone's of the same round.
        ratio_low: First quartile of that ratio.
        ratio_high: Third quartile.
        milliseconds: Median time of one batch.
        bare_milliseconds: The bare backbone's.
        samples: Milliseconds of every round.
        batch: [examples, tokens] of the timed batch.
        settings: Settings of the method that were timed.
        protocol: What the comparison's runs share.
        versions: Package -> version.
        machine: Processor or accelerator, threads.
        finished: UTC time, ISO 8601.
    """

    method: str
    variant: str
    ratio: float
    ratio_low: float
    ratio_high: float
    milliseconds: float
    bare_milliseconds: float
    samples: list[float]
    batch: list[int]
    settings: dict[str, Any]
    protocol: dict[str, Any]
    versions: dict[str, str]
    machine: str
    finished: str


Record = TypeVar("Record", RunRecord, CostRecord)


class RecordFile(Generic[Record]):
    """A JSON-lines file of records.

    Args:
        path: The file; it need not exist.
        kind: The class of its records.

    Attributes:
        records: What was read and appended, in order.
        notes: What was wrong with the file, for people.
    """

    def __init__(self, path: Path, kind: type[Record]) -> None:
        self.path = path
        self.kind: type[Record] = kind
        self.records: list[Record] = []
        self.notes: list[str] = []
        content = path.read_bytes() if path.exists() else b""
        self._torn = bool(content) and not content.endswith(b"\n")
        for number, line in enumerate(content.split(b"\n"), start=1):
            if not line.strip():
                continue
            try:
                self.records.append(kind(**json.loads(line.decode("utf-8"))))
            except (ValueError, TypeError) as error:
                self.notes.append(
                    f"line {number} of {path} is not a whole {kind.__name__} ({type(error).__name__}); "
                    "it is left there and ignored, its run counts as not run"
                )

    def append(self, record: Record) -> None:
        """Write one more line and flush it to the disk before returning."""
        line = json.dumps(asdict(record), ensure_ascii=False, allow_nan=False).encode("utf-8") + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab") as file:
            file.write(b"\n" + line if self._torn else line)  # a torn line stays one of its own
            file.flush()
            os.fsync(file.fileno())
        self._torn = False
        self.records.append(record)

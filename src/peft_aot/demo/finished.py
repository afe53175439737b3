"""Remembering which trainings are done, so that a demo that was interrupted goes on where it stopped."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

from peft_aot.task import LocalFiles
from peft_aot.train import TrainOptions, TrainResult

RECORD = "demo_run.txt"  # not .json: it is no part of the adapter


@dataclass(frozen=True)
class Run:
    """A finished training.

    Attributes:
        directory: The saved adapter.
        score: Validation score of the saved checkpoint.
        train_seconds: Seconds it took, evaluations included.
        trainable_parameters: Numbers trained, head included.
        stored_bytes: Bytes of the saved files, table included.
    """

    directory: Path
    score: float
    train_seconds: float
    trainable_parameters: int
    stored_bytes: int


def save_run(options: TrainOptions, result: TrainResult) -> Run:
    """Record in the output directory that this training is done; written last, so that a crash leaves no record."""
    run = Run(result.output, result.score, result.train_seconds, result.trainable_parameters, result.stored_bytes)
    record = {**asdict(run), "directory": None, "fingerprint": _fingerprint(options)}
    (options.output / RECORD).write_text(json.dumps(record), encoding="utf-8")
    return run


def forget_run(options: TrainOptions) -> None:
    """Delete the record before the training it tells of is replaced."""
    (options.output / RECORD).unlink(missing_ok=True)


def load_run(options: TrainOptions) -> Run | None:
    """Return the recorded run, or None if there is none, or one with other options or other data."""
    path = options.output / RECORD
    if not path.is_file():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record.pop("fingerprint") != _fingerprint(options):
        return None
    return Run(**{**record, "directory": options.output})


def _fingerprint(options: TrainOptions) -> str:
    """Hash what decides a training: its options, without where it lies, and the contents of its files."""
    facts = {name: str(value) for name, value in sorted(asdict(options).items()) if name not in {"task", "output"}}
    digest = sha256(json.dumps(facts).encode())
    if isinstance(options.task, LocalFiles):
        for file in (options.task.train, options.task.validation):
            digest.update(file.read_bytes() if file is not None else b"")
    else:
        digest.update(options.task.encode())
    return digest.hexdigest()

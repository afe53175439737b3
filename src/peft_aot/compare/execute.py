"""One run of a comparison: train in a temporary folder, and write down what came of it."""

from __future__ import annotations

import json
import shutil
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import torch
from peft.utils import CONFIG_NAME

from peft_aot.loading import pick_device
from peft_aot.loop import StopRequest
from peft_aot.machine import describe_processor
from peft_aot.progress import Progress, ProgressCallback
from peft_aot.train import TrainResult, train

from .memory import PeakMemory, release_unused
from .options import CompareOptions
from .records import Run, RunRecord

FULL_DISK = 50 * 2**20  # bytes
PACKAGES = ("peft_aot", "peft", "transformers", "torch")


def execute(
    options: CompareOptions,
    run: Run,
    on_progress: ProgressCallback | None = None,
    stop: StopRequest | None = None,
) -> RunRecord:
    """Train once.

    Args:
        options: The comparison.
        run: Which of its runs.
        on_progress: As for `train`.
        stop: As for `train`.

    Returns:
        What was measured; a run that diverged, or that broke in a way that need not concern the others, is recorded as
        failed with its reason.

    Raises:
        TrainingInterrupted, KeyboardInterrupt: The run was stopped; nothing of it is kept.
        OSError, torch.AcceleratorError, RuntimeError: The disk, the device or the data failed, which the other runs
            would meet as well.
    """
    history: list[dict[str, float | None]] = []

    def remember(progress: Progress) -> None:
        if progress.phase == "evaluate":
            history.append(
                {
                    "epoch": round(progress.epoch, 4),
                    "step": progress.step,
                    "loss": progress.loss,
                    "score": progress.score,
                    "seconds": round(progress.seconds, 2),
                }
            )
        if on_progress is not None:
            on_progress(progress)

    release_unused()
    device = pick_device()
    started = time.monotonic()
    result: TrainResult | None = None
    reason, config = "", {}
    with tempfile.TemporaryDirectory(prefix="peft-aot-run-") as folder, PeakMemory(device) as memory:
        try:
            result = train(options.train_options(run, Path(folder) / "run"), remember, stop)
            config = adapter_config(result.output)
        except (ValueError, TypeError, ArithmeticError, RuntimeError) as error:
            # a broken device or a full disk is no fault of the run; a lack of memory is one
            if isinstance(error, torch.AcceleratorError) or shutil.disk_usage(folder).free < FULL_DISK:
                raise
            reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no message'}"
    status: Literal["done", "failed"] = "failed" if result is None else "done"
    return RunRecord(
        task=run.task,
        method=run.method,
        trial=run.trial,
        settings=run.settings,
        seed=run.seed,
        status=status,
        reason=reason,
        score=None if result is None else result.score,
        scores={} if result is None else result.card.scores,
        history=[{name: _finite(value) for name, value in entry.items()} for entry in history],
        partial=[] if result is None else list(result.card.partial_data),
        train_examples=0 if result is None else result.card.train_examples,
        trained_parameters=0 if result is None else result.trainable_parameters,
        stored_bytes=0 if result is None else result.stored_bytes,
        peak_memory_bytes=memory.added,
        train_seconds=round(time.monotonic() - started if result is None else result.train_seconds, 2),
        precision="" if result is None else result.card.precision,
        protocol=options.protocol_of(run.task),
        versions=versions(),
        machine=describe_processor(device),
        finished=now(),
        config=config,
    )


def adapter_config(output: Path) -> dict[str, Any]:
    """Return the PEFT configuration of a saved adapter, what it leaves at None left out; empty for a whole model."""
    file = output / CONFIG_NAME
    saved = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {name: _ordered(value) for name, value in saved.items() if value is not None}


def _ordered(value: Any) -> Any:
    # PEFT writes sets of names as lists, in an order that differs from process to process
    names = isinstance(value, list) and all(isinstance(entry, str) for entry in value)
    return sorted(value) if names else value


def _finite(value: float | None) -> float | None:
    return value if value is None or abs(value) < float("inf") else None  # JSON has no nan


def versions() -> dict[str, str]:
    """Return the versions of the packages that decide a score."""
    return {name: version(name) for name in PACKAGES}


def now() -> str:
    """Return the time, ISO 8601 in UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())

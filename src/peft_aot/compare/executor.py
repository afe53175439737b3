"""Who executes the runs of a comparison, and whom they tell."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from peft_aot.progress import Progress

from .options import CompareOptions
from .records import Run, RunRecord


class RunListener(Protocol):
    """Told what becomes of runs. What it does is done before the executor goes on; what it raises stops everything."""

    def started(self, run: Run) -> None:
        """A run begins."""

    def progress(self, run: Run, progress: Progress) -> None:
        """How a run goes."""

    def finished(self, record: RunRecord) -> None:
        """A run has ended, well or not."""


class Executor(Protocol):
    """Executes runs: `local.run_here`, or an `on_ray.RayExecutor`."""

    def __call__(self, options: CompareOptions, runs: Sequence[Run], listener: RunListener) -> None:
        """Execute `runs`, in any order; return when all have been given to `listener.finished`."""

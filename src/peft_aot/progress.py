"""What a training run reports while it goes on, and how it is asked to stop.

Knows nothing of terminals: a caller that wants a progress bar passes a function taking `Progress`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True)
class Progress:
    """One report of a running training.

    Attributes:
        step: Optimizer steps done, counted over the whole run (a resumed run starts above 0).
        total_steps: Optimizer steps the run will have done at its end.
        epoch: Epochs done, fractional.
        loss: Mean training loss since the last report, or None before the first one.
        score: Validation score of the last evaluation (the mean of the task's metrics), or None before it.
        seconds: Seconds since this process began to train.
        seconds_left: Seconds the rest will take at the pace so far, or None before the first step.
        phase: "train" while steps are done, "evaluate" right after an evaluation.
    """

    step: int
    total_steps: int
    epoch: float
    loss: float | None
    score: float | None
    seconds: float
    seconds_left: float | None
    phase: str


ProgressCallback: TypeAlias = Callable[[Progress], None]


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C after a complete step; everything needed to go on is on disk."""

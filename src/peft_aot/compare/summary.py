"""What a reader wants to know of a comparison: scores per task, macro averages, costs, search curves.

Frozen data only: `summarize` makes it of records, `report` shows it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TaskColumn:
    """One task of a comparison.

    Attributes:
        name: The task's name.
        metrics: Names of its numbers, whose mean is the score.
        partial: Names of the splits of which official rows are missing; empty for the official set.
        train_examples: Examples trained on, 0 while unknown.
        scored: What the scores are of, in words.
    """

    name: str
    metrics: tuple[str, ...]
    partial: tuple[str, ...]
    train_examples: int
    scored: str = "the validation split"

    @property
    def label(self) -> str:
        """The name as every output shows it, with "(partial)" where official rows are missing."""
        return f"{self.name} (partial)" if self.partial else self.name


@dataclass(frozen=True)
class Cell:
    """One method on one task.

    Attributes:
        task: Name of the task.
        method: Name of the method.
        status: "done"; "running" (some runs are missing); "not run"; "not applicable"; "failed" (no run finished).
        reason: Why it is not applicable or failed.
        trials: Score of every search run that ended, in search order; None for a failed one. In [-1, 1].
        best_settings: The settings with the best score in the search, or None.
        seed_scores: Scores of the best settings, one per seed that ran.
        median: Median of `seed_scores`, or None.
        low: Their minimum, or None.
        high: Their maximum, or None.
        evp: Expected validation performance after 1, 2, ... trials (Dodge et al. 2019).
        failed: Number of failed runs.
        searched: Whether every run of the search has ended.
    """

    task: str
    method: str
    status: str
    reason: str
    trials: tuple[float | None, ...]
    best_settings: dict[str, Any] | None
    seed_scores: tuple[float, ...]
    median: float | None
    low: float | None
    high: float | None
    evp: tuple[float, ...]
    failed: int
    searched: bool = True


@dataclass(frozen=True)
class MethodRow:
    """One method over all tasks.

    Attributes:
        name: The method's name.
        title: For people.
        group: "ours" (this package's methods), "peft" (PEFT's), "reference" (full fine-tuning, head only) or "control".
        macro: Mean over `macro_tasks` of the medians, or of the task's lowest score where a search failed; or None.
        macro_tasks: The tasks that the macro average is taken over, the same for all methods that have one.
        evp: Mean over `macro_tasks` of the tasks' curves.
        trained_parameters: Median over tasks of the numbers trained by the best settings, or None.
        stored_bytes: Median over tasks of the bytes stored, without a fused table, or None.
        peak_memory_bytes: What a run added to the process: lowest of a task's runs, highest of the tasks; or None.
        train_seconds: Median over tasks, or None.
        ratio: Inference time over the bare backbone's, or None if it was not measured.
        ratio_low: First quartile.
        ratio_high: Third quartile.
        variant: How it was served for that ratio ("table" for fused AoT).
        mixes: What one batch may mix: "any heads", "adapters" (one head for all) or "no".
        cells: One per task, in the order of the tasks.
        points: Settings of the search's trials, in order.
    """

    name: str
    title: str
    group: str
    macro: float | None
    macro_tasks: tuple[str, ...]
    evp: tuple[float, ...]
    trained_parameters: float | None
    stored_bytes: float | None
    peak_memory_bytes: int | None
    train_seconds: float | None
    ratio: float | None
    ratio_low: float | None
    ratio_high: float | None
    variant: str
    mixes: str
    cells: tuple[Cell, ...]
    points: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Summary:
    """A whole comparison.

    Attributes:
        backbone: The backbone, for people.
        tasks: The tasks, in order.
        methods: The methods, in order.
        protocol: What all runs share, by name.
        trials: Search runs per method and task that were planned.
        seeds: Seeds of the best settings that were planned.
        runs_done: Runs finished, failed ones included.
        runs_planned: Runs planned.
        machines: Machines that ran them.
        versions: Package -> version.
        notes: What a reader must know: partial data, failures, ignored lines, tasks left out of the macro average.
    """

    backbone: str
    tasks: tuple[TaskColumn, ...]
    methods: tuple[MethodRow, ...]
    protocol: dict[str, Any]
    trials: int
    seeds: int
    runs_done: int
    runs_planned: int
    machines: tuple[str, ...]
    versions: dict[str, str]
    notes: tuple[str, ...]

"""Which runs a comparison consists of, and which of them may start now.

The search comes first: every method's k-th settings on every task before anyone's k+1-th, so that a comparison that is
cut short is a fair one with fewer trials. When a method's search on a task is over, its best settings run again with
further seeds. Everything follows from the finished runs; nothing else is remembered.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .records import Run, RunRecord


@dataclass(frozen=True)
class Plan:
    """All that will be run.

    Attributes:
        tasks: Names of the tasks, in the order in which they run.
        points: Method -> settings of its search, in order; as many for each method.
        excluded: (task, method) -> why the method cannot do the task.
        seeds: Runs of the best settings, the search's own included.
    """

    tasks: tuple[str, ...]
    points: Mapping[str, Sequence[dict[str, Any]]]
    excluded: Mapping[tuple[str, str], str]
    seeds: int

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Every (task, method) that runs."""
        every = ((task, method) for task in self.tasks for method in self.points)
        return [pair for pair in every if pair not in self.excluded]

    @property
    def total(self) -> int:
        """Number of runs."""
        return sum(len(self.points[method]) + self.seeds - 1 for _, method in self.pairs)

    def without(self, refused: Mapping[str, str]) -> Plan:
        """Return the plan without methods that the backbone refuses, given why."""
        more = {(task, name): reason for name, reason in refused.items() for task in self.tasks}
        return replace(self, excluded={**more, **self.excluded})

    def is_hopeless(self, records: Sequence[RunRecord], task: str, method: str) -> bool:
        """Whether a search is over in which every run failed, so that its further seeds will never start."""
        search = self.records_of(records, task, method)
        return len(search) == len(self.points[method]) and best_run(search) is None

    def search(self) -> list[Run]:
        """The runs of the search, in order."""
        rounds = max(map(len, self.points.values()))
        return [
            Run(task, method, trial, self.points[method][trial], seed=0)
            for trial in range(rounds)
            for task, method in self.pairs
            if trial < len(self.points[method])
        ]

    def startable(self, records: Sequence[RunRecord]) -> list[Run]:
        """Return what may start now, in order: none of it waits for a run that is not finished."""
        finished = {record.run.key for record in records}
        waiting = [run for run in self.search() if run.key not in finished]
        unfinished = {(run.task, run.method) for run in waiting}
        for task, method in self.pairs:
            if (task, method) not in unfinished and (best := best_run(self.records_of(records, task, method))):
                again = [replace(best, seed=seed) for seed in range(1, self.seeds)]
                waiting += [run for run in again if run.key not in finished]
        return waiting

    def records_of(self, records: Sequence[RunRecord], task: str, method: str) -> list[RunRecord]:
        """Return the finished runs of a method's search on a task, in search order, without others in the file."""
        found = {record.run.key: record for record in records}
        runs = [Run(task, method, trial, point, seed=0) for trial, point in enumerate(self.points[method])]
        return [found[run.key] for run in runs if run.key in found]


def best_run(search: Sequence[RunRecord]) -> Run | None:
    """Return the run with the best score, the earliest of equals; None if none has a score."""
    scored = [record for record in search if record.score is not None]
    return max(scored, key=lambda record: record.score or 0.0).run if scored else None

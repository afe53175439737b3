"""Waiting jobs of one padded length, in the order of their tasks' turns."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from dataclasses import dataclass, field
from heapq import heapify, heappop, heappush, heapreplace
from typing import Generic

from .fairness import Share
from .job import Job, T


@dataclass(eq=False, slots=True)
class Line(Generic[T]):
    """The jobs of one task in one bucket.

    Attributes:
        bucket: The bucket.
        task: The task.
        share: What the task has had.
        jobs: Each job and its number, in order of arrival.
    """

    bucket: Bucket[T]
    task: Hashable
    share: Share
    jobs: OrderedDict[Job[T], int] = field(default_factory=OrderedDict)

    @property
    def head(self) -> Job[T]:
        """The job that came first."""
        return next(iter(self.jobs))

    @property
    def turn(self) -> tuple[int, int]:
        """When it is this line's turn, the smallest first: the task's start tag, then the number of the first job."""
        return self.share.start, next(iter(self.jobs.values()))


class Bucket(Generic[T]):
    """The lines of one padded length.

    A heap holds every line under its turn. A turn only grows, when the task is served or the first job leaves; the heap
    is told when the line is at its top. A line that is empty is no longer used, and leaves the heap there too.

    Args:
        padded: The length in tokens.
        stale: Empty lines that the heap may hold, about.

    Attributes:
        padded: The length in tokens.
        waiting: Jobs that wait.
    """

    def __init__(self, padded: int, stale: int) -> None:
        self.padded = padded
        self.waiting = 0
        self._stale = stale
        self._lines: dict[Hashable, Line[T]] = {}
        self._heap: list[tuple[tuple[int, int], Line[T]]] = []

    def add(self, job: Job[T], number: int, share: Share) -> Line[T]:
        """Let a job wait, and return the line it stands in.

        Args:
            job: The job.
            number: One more than any before.
            share: Its task's.
        """
        line = self._lines.get(job.task)
        if line is None:
            line = self._lines[job.task] = Line(self, job.task, share)
            if len(self._heap) > len(self._lines) + self._stale:
                self._heap = [entry for entry in self._heap if entry[1].jobs]
                heapify(self._heap)
            heappush(self._heap, ((share.start, number), line))
        line.jobs[job] = number
        self.waiting += 1
        return line

    @property
    def bound(self) -> tuple[int, int]:
        """A turn that no line of this bucket is before; only while a job waits."""
        return self._heap[0][0]

    def first(self) -> Line[T] | None:
        """Return the line whose turn is first, or None."""
        while self._heap:
            turn, line = self._heap[0]
            if not line.jobs:
                heappop(self._heap)
            elif turn != line.turn:
                heapreplace(self._heap, (line.turn, line))
            else:
                return line
        return None

    def remove(self, job: Job[T], line: Line[T]) -> None:
        """Remove a job from its line."""
        del line.jobs[job]
        self.waiting -= 1
        if not line.jobs:
            del self._lines[line.task]

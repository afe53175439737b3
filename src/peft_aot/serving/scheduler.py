"""Which waiting jobs go together next, and when; a pure data structure without threads, tensors or a clock.

One queue holds the jobs of all tasks, and a batch mixes them freely. `fairness` says whose turn it is, `lengths` which
jobs may share a batch. A job leaves once: by `next_batch`, `expired`, `drop` or `drain`; or, when it was cancelled,
silently, by whichever method but `drop` meets it first.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from heapq import heapify, heappop, heappush
from typing import Generic

from .bucket import Bucket, Line
from .fairness import Ledger
from .job import Job, T
from .lengths import may_join, padded_length
from .limits import Limits


class Scheduler(Generic[T]):
    """The waiting jobs of all tasks; its length is how many they are.

    Args:
        limits: What makes a batch, and how many jobs may wait.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._ledger = Ledger(limits.queue)
        self._number = 0  # of the job that was added last
        self._waiting: OrderedDict[Job[T], Line[T]] = OrderedDict()
        self._buckets: dict[int, Bucket[T]] = {}  # those that are not empty
        self._deadlines: list[tuple[float, int, Job[T]]] = []  # a heap, with jobs that have left
        self._next: Line[T] | None = None  # the line whose turn it is, while that is known
        self._late: list[Job[T]] = []  # do not wait any more, and `expired` has not told yet

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def free(self) -> int:
        """Places left in the queue."""
        return self._limits.queue - len(self._waiting)

    def room(self, task: Hashable) -> bool:
        """Return whether a job of a task may be added: if fewer of its jobs wait than places are free.

        This is the dynamic threshold of Choudhury & Hahne (1998), with factor 1. A task alone takes half the queue, and
        one with nothing waiting finds a place until none is left.
        """
        return self._ledger.waiting(task) < self.free

    def add(self, job: Job[T]) -> None:
        """Let a job wait. Jobs are added in the order they arrived.

        Raises:
            ValueError: If it waits already.
            RuntimeError: If there is no room for it.
        """
        if job in self._waiting:
            raise ValueError(f"expected a new job, got one of task {job.task!r} that waits already; add a job once")
        if not self.room(job.task):
            raise RuntimeError(
                f"expected room for a job of task {job.task!r}, got {self._ledger.waiting(job.task)} of its jobs "
                f"waiting and {self.free} places free; ask `room` first"
            )
        if not self._waiting:
            self._ledger = Ledger(self._limits.queue)
        self._number += 1
        padded = padded_length(job.tokens)
        bucket = self._buckets.get(padded)
        if bucket is None:
            bucket = self._buckets[padded] = Bucket(padded, stale=self._limits.queue)
        line = self._waiting[job] = bucket.add(job, self._number, self._ledger.enter(job.task))
        if self._next and line.share.start < self._next.share.start:
            self._next = line
        if job.deadline is not None:
            if len(self._deadlines) > 2 * self._limits.queue:
                self._deadlines = [entry for entry in self._deadlines if self._waits(entry)]
                heapify(self._deadlines)
            heappush(self._deadlines, (job.deadline, self._number, job))

    def due(self, now: float) -> float | None:
        """Return in how many seconds a batch should be made: 0 for now, None if nothing waits.

        That is when it is full, or when the oldest job has waited for `Limits.wait`. For this every job counts as long
        as its batch's bucket, so a batch may be called full when a few short jobs would still fit.
        """
        first = self._first()
        if first is None:
            return None
        padded = first.bucket.padded
        examples = sum(bucket.waiting for bucket in self._sharing(padded))
        if examples >= self._limits.batch_examples or (examples + 1) * padded > self._limits.batch_tokens:
            return 0.0
        return max(0.0, next(iter(self._waiting)).arrived + self._limits.wait - now)

    def next_batch(self, now: float) -> list[Job[T]]:
        """Remove and return the jobs to do next, in order of their turns.

        The first is the one whose turn it is. Others of its bucket follow until one does not fit, then those of the
        next shorter buckets down to half the length. The batch is as long as its longest job. A job that is too long
        for any batch is a batch of its own.

        Args:
            now: The time. Jobs whose deadline has passed are left to `expired`.

        Returns:
            One job or more; none only if nothing waits that is still wanted.
        """
        self._late += self._overdue(now)
        batch: list[Job[T]] = []
        first = self._first()
        if first is None:
            return batch
        longest = 0
        for bucket in self._sharing(first.bucket.padded):
            while line := self._head(bucket):
                job = line.head
                examples, length = len(batch) + 1, max(longest, job.tokens)
                if batch and (examples > self._limits.batch_examples or examples * length > self._limits.batch_tokens):
                    break
                longest = length
                self._ledger.charge(line.share, bucket.padded)
                self._leave(job)
                batch.append(job)
        if following := self._first():
            self._ledger.advance(following.share.start)
        return batch

    def next_deadline(self) -> float | None:
        """Return the earliest deadline of the jobs that wait, or None."""
        while self._deadlines and not self._waits(self._deadlines[0]):
            heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def expired(self, now: float) -> list[Job[T]]:
        """Remove and return the jobs whose deadline has passed, those that `next_batch` met included."""
        late, self._late = self._late + self._overdue(now), []
        return [job for job in late if not job.cancelled()]

    def drop(self, job: Job[T]) -> bool:
        """Remove a job, and return whether it was still here."""
        if job in self._waiting:
            self._leave(job)
        elif job in self._late:
            self._late.remove(job)
        else:
            return False
        return True

    def drain(self) -> list[Job[T]]:
        """Remove and return all jobs."""
        jobs, self._late = [*self._late, *self._waiting], []
        for job in list(self._waiting):
            self._leave(job)
        return [job for job in jobs if not job.cancelled()]

    def _first(self) -> Line[T] | None:
        """Return the line whose turn it is."""
        if not self._next or self._next.head.cancelled():
            best: Line[T] | None = None
            for bucket in list(self._buckets.values()):
                if best is None or bucket.bound < best.turn:
                    line = self._head(bucket)
                    if line and (best is None or line.turn < best.turn):
                        best = line
            self._next = best
        return self._next

    def _head(self, bucket: Bucket[T]) -> Line[T] | None:
        """Return the first line of a bucket, whose first job is still wanted."""
        while line := bucket.first():
            if not line.head.cancelled():
                return line
            self._leave(line.head)
        return None

    def _sharing(self, padded: int) -> list[Bucket[T]]:
        """Return the buckets that a batch of one is filled from, itself first."""
        return [self._buckets[other] for other in sorted(self._buckets, reverse=True) if may_join(other, padded)]

    def _overdue(self, now: float) -> list[Job[T]]:
        """Remove and return the waiting jobs whose deadline has passed."""
        jobs = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            job = heappop(self._deadlines)[2]
            self._leave(job)
            jobs.append(job)
        return jobs

    def _waits(self, entry: tuple[float, int, Job[T]]) -> bool:
        """Return whether an entry of the deadlines is of a job that still waits."""
        return entry[2] in self._waiting

    def _leave(self, job: Job[T]) -> None:
        line = self._waiting.pop(job)
        self._next = None
        line.share.waiting -= 1
        line.bucket.remove(job, line)
        if not line.bucket.waiting:
            del self._buckets[line.bucket.padded]

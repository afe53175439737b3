"""Whose turn it is: start-time fair queueing (Goyal, Vin & Cheng 1996); knows tasks and costs, no jobs.

The task with the smallest start tag is next. Being served moves its tag on by the cost, and a task that had nothing
waiting joins at the virtual time, so that it saves up no turns while it is away. The paper tags a packet when it
arrives. Here a task pays when it is served, which gives the same order, except where jobs leave unserved: tagged on
arrival, a task whose jobs expire would fall ever further behind for work that was never done.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass


@dataclass(eq=False, slots=True)
class Share:
    """What a task has had.

    Attributes:
        start: Start tag of its next job, in tokens.
        waiting: Its jobs that wait.
    """

    start: int
    waiting: int = 0


class Ledger:
    """The tasks' shares in a busy period, which is the time from a first job until nothing waits.

    Args:
        idle: Tasks with nothing waiting that are remembered for sure. Up to three times as many shares are kept.
    """

    def __init__(self, idle: int) -> None:
        self._idle = idle
        self._now = 0  # the virtual time
        self._latest = 0  # highest start tag that was served
        self._shares: dict[Hashable, Share] = {}

    def waiting(self, task: Hashable) -> int:
        """Return how many jobs of a task wait."""
        share = self._shares.get(task)
        return share.waiting if share else 0

    def enter(self, task: Hashable) -> Share:
        """Count one more waiting job of a task, and return its share."""
        share = self._shares.get(task)
        if share is None:
            if len(self._shares) >= 3 * self._idle:
                self._forget()
            share = self._shares[task] = Share(self._now)
        elif not share.waiting and share.start < self._now:
            share.start = self._now
        share.waiting += 1
        return share

    def charge(self, share: Share, cost: int) -> None:
        """Let a task pay for a job that is served.

        Args:
            share: The task's.
            cost: Tokens, padding counted.
        """
        self._latest = max(self._latest, share.start)
        share.start += cost

    def advance(self, first: int) -> None:
        """Move the virtual time on to the highest tag that was served, but not past the smallest that waits.

        The two differ only where a batch did not take the smallest tags, for being of another length. A task that joins
        then shares the smallest tag, and waits at most for one job of every task that has it too.

        Args:
            first: The smallest start tag that waits.
        """
        self._now = max(self._now, min(self._latest, first))

    def _forget(self) -> None:
        """Forget the tasks with nothing waiting that would join at the virtual time anyway.

        If too many are left, the time moves on until they are few enough: with ever new tasks, each served once and
        gone, it would stand still, and whoever has a second job waiting would never be served.
        """
        ends = sorted(share.start for share in self._shares.values() if not share.waiting)
        if len(ends) > self._idle:
            self._now = max(self._now, ends[-self._idle - 1])
        self._shares = {task: s for task, s in self._shares.items() if s.waiting or s.start > self._now}

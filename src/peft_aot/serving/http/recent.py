"""How busy an engine has been in the last seconds, for people who look at the page."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable

import numpy as np

from .contract import Batch, Engine
from .schemas import Load

WINDOW = 10.0
BATCHES = 10_000
PERCENTILES = (50, 95, 99)


class Recent:
    """The batches of the last seconds.

    Args:
        engine: What they are of; told of its batches from now on.
        clock: Seconds, rising.
    """

    def __init__(self, engine: Engine, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine = engine
        self._clock = clock
        self._lock = threading.Lock()
        self._batches: deque[tuple[float, Batch]] = deque(maxlen=BATCHES)
        self._tasks = engine.tasks
        self._version = 0
        engine.observers.append(self._add)

    def load(self) -> Load:
        """Summarize the last seconds."""
        oldest = self._clock() - WINDOW
        with self._lock:
            while self._batches and self._batches[0][0] < oldest:
                self._batches.popleft()
            batches = [batch for _, batch in self._batches]
            tasks = self._engine.tasks
            if tasks is not self._tasks:  # which never changes in place
                self._tasks, self._version = tasks, self._version + 1
        examples = sum(batch.examples for batch in batches)
        latencies = [waited + batch.seconds for batch in batches for waited in batch.waited]
        found = np.percentile(latencies, PERCENTILES) if latencies else np.zeros(len(PERCENTILES))
        return Load(
            seconds=WINDOW,
            queued=self._engine.queued,
            tasks=len(tasks),
            tasks_version=self._version,
            texts_per_second=examples / WINDOW,
            batches_per_second=len(batches) / WINDOW,
            batch_examples=examples / max(len(batches), 1),
            batch_tasks=sum(batch.tasks for batch in batches) / max(len(batches), 1),
            latency={f"p{place}": float(value) for place, value in zip(PERCENTILES, found, strict=True)},
        )

    def _add(self, batch: Batch) -> None:
        with self._lock:
            self._batches.append((self._clock(), batch))

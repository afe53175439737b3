"""Counts and times for Prometheus, in a registry of their own.

Labels are endpoints, statuses, levels of the cache and names of tasks that are loaded, `TASKS` of them at most: nothing
that a caller can invent.
"""

from __future__ import annotations

import threading

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from .contract import Batch, Engine

TASKS = 1000
OTHER = "other"
SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
COUNTS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The metrics of one server.

    Args:
        engine: What they are of; told of its batches from now on.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._names: set[str] = set()
        self._lock = threading.Lock()
        self.registry = CollectorRegistry()
        registry = self.registry
        self._requests = Counter("aot_http_requests", "Calls.", ["endpoint", "status"], registry=registry)
        self._errors = Counter(
            "aot_http_errors", "Calls that failed, by type.", ["endpoint", "type"], registry=registry
        )
        self._seconds = Histogram(
            "aot_http_request_seconds", "Time of a call.", ["endpoint"], registry=registry, buckets=SECONDS
        )
        self._texts = Counter("aot_texts", "Texts asked, by task.", ["task"], registry=registry)
        self._waited = Histogram(
            "aot_queue_wait_seconds", "Time a text waits for its batch.", registry=registry, buckets=SECONDS
        )
        self._batch_seconds = Histogram("aot_batch_seconds", "Time of a batch.", registry=registry, buckets=SECONDS)
        self._batch_examples = Histogram("aot_batch_examples", "Texts of a batch.", registry=registry, buckets=COUNTS)
        self._batch_tasks = Histogram("aot_batch_tasks", "Tasks of a batch.", registry=registry, buckets=COUNTS)
        self._tokens = Counter("aot_tokens", "Tokens computed, padding left out.", registry=registry)
        self._padded = Counter("aot_padded_tokens", "Tokens computed, padding counted.", registry=registry)
        self._hits = Counter("aot_cache_hits", "Rows found, by where.", ["level"], registry=registry)
        Gauge("aot_queued_texts", "Texts that wait.", registry=registry).set_function(lambda: engine.queued)
        Gauge("aot_tasks", "Tasks that are served.", registry=registry).set_function(lambda: len(engine.tasks))
        engine.observers.append(self.count_batch)

    def count_call(self, endpoint: str, status: int, seconds: float, problem: str | None) -> None:
        """Count a call.

        Args:
            endpoint: The path as declared.
            status: Of HTTP.
            seconds: How long it took.
            problem: The type of its error, if it failed.
        """
        self._requests.labels(endpoint, str(status)).inc()
        self._seconds.labels(endpoint).observe(seconds)
        if problem is not None:
            self._errors.labels(endpoint, problem).inc()

    def count_texts(self, task: str, number: int) -> None:
        """Count texts asked of a task that is served."""
        self._texts.labels(self._label(task)).inc(number)

    def count_batch(self, batch: Batch) -> None:
        """Count a batch."""
        self._batch_seconds.observe(batch.seconds)
        self._batch_examples.observe(batch.examples)
        self._batch_tasks.observe(batch.tasks)
        self._tokens.inc(batch.tokens)
        self._padded.inc(batch.padded_tokens)
        for seconds in batch.waited:
            self._waited.observe(seconds)
        for level, number in batch.hits.items():
            self._hits.labels(level).inc(number)

    def render(self) -> bytes:
        """Return all of it in Prometheus' text format."""
        return generate_latest(self.registry)

    def _label(self, task: str) -> str:
        with self._lock:
            if task not in self._names:
                if len(self._names) >= TASKS:
                    self._forget_removed()
                if len(self._names) >= TASKS:
                    return OTHER
                self._names.add(task)
        return task

    def _forget_removed(self) -> None:
        for name in self._names - set(self._engine.tasks):
            self._texts.remove(name)
            self._names.discard(name)

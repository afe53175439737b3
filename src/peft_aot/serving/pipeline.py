"""Requests in, answers out: a bounded queue, one thread that prepares batches and one that runs them.

While a batch runs the next one is prepared, and no more than that: what arrives meanwhile may still share the batch
after. Knows nothing of names of tasks and of how a batch is computed.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass
from weakref import WeakSet

from .batch import Asked, Batches, Prepared
from .batch_record import BatchRecord
from .errors import DeadlineExceeded, EngineClosed, Overloaded
from .job import Job
from .limits import Limits
from .request import Answer
from .scheduler import Scheduler
from .served import Served

SMOOTHING = 0.1
"""Weight of the last batch in the mean of seconds per request."""


@dataclass(eq=False)
class _Waiting:
    asked: Asked
    future: Future[Answer]
    arrived: float
    begun: bool = False  # whether the future was told to run, or that it was withdrawn: once


_Batch = tuple[list[_Waiting], Prepared | None]


class TaskForgotten(Exception):
    """A request came for a task that was retired meanwhile, and forgotten since nothing waited for it."""


class Pipeline:
    """The queue of an engine and its threads.

    Args:
        batches: Prepares and runs batches.
        limits: What makes a batch, and how many requests may wait.
        forget: Called with a retired task when its last request has been answered.

    Attributes:
        observers: Called with a record after each batch.
    """

    def __init__(self, batches: Batches, limits: Limits, forget: Callable[[Served], None]) -> None:
        self._batches, self._limits, self._forget = batches, limits, forget
        self._scheduler: Scheduler[_Waiting] = Scheduler(limits)
        self._changed = threading.Condition()
        self._closing = False
        self._uses: Counter[Served] = Counter()
        self._retired: set[Served] = set()
        self._forgotten: WeakSet[Served] = WeakSet()
        self._open: set[_Waiting] = set()
        self._pace = 0.0  # seconds per request, smoothed
        self._ahead = threading.Semaphore(1)  # one batch is prepared ahead
        self._slot: queue.SimpleQueue[_Batch | None] = queue.SimpleQueue()
        self.observers: list[Callable[[BatchRecord], None]] = []
        self._threads = [
            threading.Thread(target=target, name=f"peft_aot {target.__name__.strip('_')}", daemon=True)
            for target in (self._prepare_batches, self._run_batches)
        ]
        for thread in self._threads:
            thread.start()

    @property
    def queued(self) -> int:
        """How many requests wait."""
        return len(self._scheduler)

    def check_open(self) -> None:
        """Refuse requests to an engine that was closed."""
        if self._closing:
            raise EngineClosed("expected an engine that is open, got one that was closed; make another")

    def check_room(self, task: Served) -> None:
        """Refuse a request of a task if the queue has no room for it.

        Raises:
            Overloaded: It has none.
        """
        if not self._scheduler.room(task.info.name):
            wait = max(0.05, len(self._scheduler) * self._pace)
            raise Overloaded(
                f"expected room in the queue for a request of task '{task.info.name}', got {len(self._scheduler)} of "
                f"{self._limits.queue} places taken; try again in {wait:.2g} s",
                wait,
            )

    def put(self, asked: Asked) -> Future[Answer]:
        """Put a request into the queue.

        Raises:
            Overloaded: It has no room.
            EngineClosed: The engine was closed meanwhile.
            TaskForgotten: Its task was retired meanwhile, and may have a successor.
        """
        future: Future[Answer] = Future()
        now, timeout = time.monotonic(), asked.request.timeout
        waiting = _Waiting(asked, future, now)
        job = Job(waiting, asked.served.info.name, len(asked.encoded), now, None if timeout is None else now + timeout)
        with self._changed:
            self.check_open()
            if asked.served in self._forgotten:
                raise TaskForgotten
            self.check_room(asked.served)
            self._scheduler.add(job)
            self._uses[asked.served] += 1
            self._open.add(waiting)
            self._changed.notify()
        future.add_done_callback(lambda _: self._left(job))
        return future

    def retire(self, task: Served) -> None:
        """Forget a task once its last request has been answered."""
        with self._changed:
            self._retired.add(task)
            unused = self._take_unused(task)
        if unused:
            self._forget(task)

    def _take_unused(self, task: Served) -> bool:
        if task not in self._retired or self._uses[task] > 0:
            return False
        self._retired.remove(task)
        self._forgotten.add(task)
        del self._uses[task]
        return True

    def _left(self, job: Job[_Waiting]) -> None:
        """Note that a request was answered, refused or withdrawn."""
        task = job.item.asked.served
        with self._changed:
            self._scheduler.drop(job)
            self._open.discard(job.item)
            if job.item.future.cancelled():
                self._begin(job.item)
            self._uses[task] -= 1
            unused = self._take_unused(task)
            if not self._uses[task]:
                del self._uses[task]
        if unused:
            self._forget(task)

    def _begin(self, waiting: _Waiting) -> bool:
        """Return whether a request is to be answered now: neither begun before nor withdrawn."""
        with self._changed:
            begun, waiting.begun = waiting.begun, True
            return not begun and waiting.future.set_running_or_notify_cancel()

    def _fail(self, waiting: _Waiting, error: Exception) -> None:
        if self._begin(waiting) or waiting.future.running():
            with contextlib.suppress(InvalidStateError):  # it was answered at this moment
                waiting.future.set_exception(error)

    # the thread that prepares

    def _prepare_batches(self) -> None:
        with self._batches.preparing():
            while True:
                self._ahead.acquire()
                waiting = self._next()
                if waiting is None:
                    break
                prepared = None
                with contextlib.suppress(Exception):  # which request is to blame shows when each runs alone
                    prepared = self._batches.prepare([one.asked for one in waiting])
                self._slot.put((waiting, prepared))
        self._slot.put(None)

    def _next(self) -> list[_Waiting] | None:
        """Wait until a batch is due; return None when the engine is closed and nothing waits any more."""
        while True:
            with self._changed:
                now = time.monotonic()
                late = self._scheduler.expired(now)
                due = self._scheduler.due(now)
                if not late and due is None and self._closing:
                    return None
                batch: list[Job[_Waiting]] = []
                if due is not None and (due <= 0 or self._closing):
                    batch = self._scheduler.next_batch(now)
                elif not late:
                    deadline = self._scheduler.next_deadline()
                    waits = [w for w in (due, None if deadline is None else deadline - now) if w is not None]
                    self._changed.wait(min(waits) if waits else None)
            for job in late:
                self._fail(job.item, DeadlineExceeded(_too_late(job.item.asked)))
            wanted = [job.item for job in batch if self._begin(job.item)]
            if wanted:
                return wanted

    # the thread that runs

    def _run_batches(self) -> None:
        with self._batches.running():
            while (taken := self._slot.get()) is not None:
                self._ahead.release()
                self._run(*taken)

    def _run(self, waiting: Sequence[_Waiting], prepared: Prepared | None) -> None:
        began = time.monotonic()
        try:
            if prepared is None:
                raise RuntimeError("this batch could not be prepared")
            answers = self._batches.run(prepared)
        except Exception as error:
            self._run_alone(waiting, error)
            return
        seconds = time.monotonic() - began
        for one, answer in zip(waiting, answers, strict=True):
            _answer(one, answer)
        self._tell(prepared, began, seconds, [began - one.arrived for one in waiting])

    def _run_alone(self, waiting: Sequence[_Waiting], error: Exception) -> None:
        """Run each request of a batch that failed alone, so that one cannot spoil the others' answers."""
        for one in waiting:
            try:
                _answer(one, self._batches.run(self._batches.prepare([one.asked]))[0])
            except Exception as own:
                own.__context__ = error
                self._fail(one, own)

    def _tell(self, prepared: Prepared, began: float, seconds: float, waited: Sequence[float]) -> None:
        pace = seconds / len(waited)
        self._pace = pace if not self._pace else (1 - SMOOTHING) * self._pace + SMOOTHING * pace
        record = BatchRecord(
            len(waited),
            len(set(prepared.names)),
            sum(len(one.encoded) for one in prepared.asked),
            prepared.inputs["input_ids"].numel(),
            seconds,
            waited,
            prepared.hits,
        )
        for observer in list(self.observers):
            observer(record)

    # the end

    def close(self, drain: bool, timeout: float | None) -> None:
        """Take no more requests, answer those that were accepted or fail them, and end the threads."""
        with self._changed:
            self._closing = True
            dropped = [] if drain else [job.item for job in self._scheduler.drain()]
            self._changed.notify_all()
        for one in dropped:
            self._fail(one, EngineClosed(_CLOSED))
        end = None if timeout is None else time.monotonic() + timeout
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(None if end is None else max(0.0, end - time.monotonic()))
        for one in list(self._open):
            self._fail(one, EngineClosed(_CLOSED))


_CLOSED = "expected an answer, got an engine that was closed before; send the request to another"


def _too_late(asked: Asked) -> str:
    return (
        f"expected an answer within {asked.request.timeout:g} s for task '{asked.served.info.name}', got none; allow "
        f"more time, or send less"
    )


def _answer(waiting: _Waiting, answer: Answer) -> None:
    with contextlib.suppress(InvalidStateError):  # the engine was closed and did not wait for it
        waiting.future.set_result(answer)

"""The scheduler against lists that are searched from end to end, and what leaves it, when."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_aot.serving.job import Job
from peft_aot.serving.lengths import padded_length
from peft_aot.serving.limits import Limits
from peft_aot.serving.scheduler import Scheduler

LENGTHS = (
    *(8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512),
    *range(768, 5000, 256),
)
OF_TASK = "expected room for a job of task 'a', got 2 of its jobs waiting and 1 places free; ask `room` first"


def naive_length(tokens: int) -> int:
    return next(length for length in LENGTHS if length >= tokens)


class Naive:
    """The same rules, on one list of what waits and a start tag per task."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.waiting: list[Job[int]] = []
        self.late: list[Job[int]] = []
        self.starts: dict[object, int] = {}
        self.now = self.latest = 0

    def of(self, task: object) -> int:
        return sum(job.task == task for job in self.waiting)

    def room(self, task: object) -> bool:
        return self.of(task) < self.limits.queue - len(self.waiting)

    def add(self, job: Job[int]) -> None:
        if not self.waiting:
            self.starts, self.now, self.latest = {}, 0, 0
        if not self.of(job.task):
            self.starts[job.task] = max(self.now, self.starts.get(job.task, 0))
        self.waiting.append(job)

    def in_turn(self) -> list[Job[int]]:
        return sorted(self.waiting, key=lambda job: self.starts[job.task])  # stable: then by arrival

    def sharing(self) -> list[int]:
        longest = naive_length(self.in_turn()[0].tokens)
        return [length for length in reversed(LENGTHS) if length <= longest <= 2 * length]

    def due(self, now: float) -> float | None:
        if not self.waiting:
            return None
        lengths = self.sharing()
        count = sum(naive_length(job.tokens) in lengths for job in self.waiting)
        full = count >= self.limits.batch_examples or (count + 1) * lengths[0] > self.limits.batch_tokens
        return 0.0 if full else max(0.0, self.waiting[0].arrived + self.limits.wait - now)

    def fits(self, batch: list[Job[int]]) -> bool:
        tokens = len(batch) * max(job.tokens for job in batch)
        return len(batch) == 1 or (len(batch) <= self.limits.batch_examples and tokens <= self.limits.batch_tokens)

    def next_batch(self, now: float) -> list[Job[int]]:
        self.late = self.expired(now)
        batch: list[Job[int]] = []
        for length in self.sharing() if self.waiting else []:
            while several := [job for job in self.in_turn() if naive_length(job.tokens) == length]:
                if not self.fits([*batch, several[0]]):
                    break
                batch.append(several[0])
                self.waiting.remove(several[0])
                self.latest = max(self.latest, self.starts[several[0].task])
                self.starts[several[0].task] += length
        if self.waiting:
            self.now = max(self.now, min(self.latest, self.starts[self.in_turn()[0].task]))
        return batch

    def deadlines(self) -> list[float]:
        return sorted(job.deadline for job in self.waiting if job.deadline is not None)

    def expired(self, now: float) -> list[Job[int]]:
        overdue = [job for job in self.waiting if job.deadline is not None and job.deadline <= now]
        late, self.late = self.late + sorted(overdue, key=lambda job: job.deadline or 0), []
        self.waiting = [job for job in self.waiting if job not in overdue]
        return late

    def drop(self, job: Job[int]) -> bool:
        was_here = job in self.waiting or job in self.late
        self.waiting = [other for other in self.waiting if other is not job]
        self.late = [other for other in self.late if other is not job]
        return was_here

    def drain(self) -> list[Job[int]]:
        jobs, self.waiting, self.late = self.late + self.waiting, [], []
        return jobs


adding = st.tuples(
    st.sampled_from("abcde"), st.integers(1, 70) | st.integers(1, 1200), st.none() | st.integers(0, 9).map(float)
)
calling = st.sampled_from(["batch", "batch", "expired", "tick", "tick", "drain"])
anything = st.lists(adding | adding | adding | adding | calling | st.integers(0, 30), min_size=20, max_size=80)


@settings(deadline=None, max_examples=400)
@given(anything, st.integers(1, 6), st.integers(40, 1500), st.integers(1, 30))
def test_same_as_searching_lists(doing: list[object], examples: int, tokens: int, queue: int) -> None:
    limits = Limits(batch_tokens=tokens, batch_examples=examples, wait=2.0, queue=queue)
    ours, naive, now = Scheduler[int](limits), Naive(limits), 0.0
    jobs: list[Job[int]] = []
    left: Counter[int] = Counter()

    def leave(several: list[Job[int]], expected: list[Job[int]]) -> None:
        assert several == expected
        left.update(job.item for job in several)

    for does in doing:
        if isinstance(does, tuple):
            task, length, patience = does
            assert ours.room(task) == naive.room(task)
            if naive.room(task):
                jobs.append(Job(len(jobs), task, length, now, None if patience is None else now + patience))
                ours.add(jobs[-1])
                naive.add(jobs[-1])
        elif does == "batch":
            batch = ours.next_batch(now)
            leave(batch, naive.next_batch(now))
            assert len(batch) <= examples
            assert len(batch) <= 1 or len(batch) * max(job.tokens for job in batch) <= tokens
            assert all(2 * padded_length(job.tokens) >= padded_length(batch[0].tokens) for job in batch)
        elif does == "expired":
            leave(ours.expired(now), naive.expired(now))
        elif does == "drain":
            leave(ours.drain(), naive.drain())
        elif isinstance(does, int) and does < len(jobs):
            assert ours.drop(jobs[does]) == (dropped := naive.drop(jobs[does]))
            left.update([does] * dropped)
        now += does == "tick"
        assert (len(ours), ours.free) == (len(naive.waiting), queue - len(naive.waiting))
        assert ours.due(now) == naive.due(now)
        assert ours.next_deadline() == next(iter(naive.deadlines()), None)
    left.update(job.item for job in ours.drain())
    assert left == Counter(range(len(jobs)))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(1, 100), st.integers(0, 3)), max_size=40), st.data())
def test_a_cancelled_job_is_never_handed_out(several: list[tuple[str, int, int]], data: st.DataObject) -> None:
    ours = Scheduler[int](Limits(batch_tokens=300, batch_examples=3, queue=200))
    cancelled: set[int] = set()
    for item, (task, tokens, deadline) in enumerate(several):
        ours.add(Job(item, task, tokens, 0.0, deadline or None, lambda item=item: item in cancelled))
    out: list[int] = []
    before: set[int] = set()
    while len(ours) and not (before and ours.due(0.0) is None):
        cancelled |= data.draw(st.sets(st.integers(0, len(several)), max_size=5)) - set(out)
        before = set(out)
        take = data.draw(st.sampled_from([ours.next_batch, ours.next_batch, ours.expired]))
        out += [job.item for job in take(data.draw(st.sampled_from([0.0, 2.0])))]
        assert not cancelled & (set(out) - before)
    out += [job.item for job in ours.drain()]
    assert len(ours) == 0 and sorted(out) == sorted(set(range(len(several))) - cancelled)


def test_the_next_job_is_cancelled_between_due_and_next_batch() -> None:
    ours = Scheduler[int](Limits(wait=1.0))
    cancelled: set[int] = set()
    for item, tokens in enumerate((9, 500, 100)):
        ours.add(Job(item, item, tokens, 0.0, cancelled=lambda item=item: item in cancelled))
    assert ours.due(0.0) == 1.0
    cancelled |= {0, 2}
    assert [job.item for job in ours.next_batch(0.0)] == [1]
    assert ours.due(0.0) is None and len(ours) == 0


def test_a_batch_that_is_not_full_has_room_for_another_of_its_bucket() -> None:
    ours = Scheduler[int](Limits(batch_tokens=200, wait=1.0))
    for count in range(1, 5):
        ours.add(Job(count, "a", 41 + count, 0.25))
        assert ours.due(0.5) == (0.75 if count < 4 else 0.0)  # a fifth of up to 48 tokens would be too many
    assert len(ours.next_batch(0.5)) == 4 and ours.due(0.5) is None


def test_the_oldest_has_waited_long_enough() -> None:
    ours = Scheduler[int](Limits(wait=1.0))
    for arrived in (0.0, 0.5):
        ours.add(Job(0, "a", 9, arrived))
    assert [ours.due(now) for now in (0.0, 0.75, 1.0, 3.0)] == [1.0, 0.25, 0.0, 0.0]


def test_a_job_that_is_too_long_for_a_batch_is_one_of_its_own() -> None:
    ours = Scheduler[int](Limits(batch_tokens=100))
    for item, tokens in enumerate((1000, 1000, 600)):
        ours.add(Job(item, "a", tokens, 0.0))
    assert ours.due(0.0) == 0.0
    assert [[job.item for job in ours.next_batch(0.0)] for _ in range(4)] == [[0], [1], [2], []]


def test_shorter_jobs_fill_a_batch_the_nearest_length_first() -> None:
    ours = Scheduler[int](Limits(batch_examples=4))
    lengths = (96, 48, 40, 64, 90, 32, 128)
    for item, tokens in enumerate(lengths):
        ours.add(Job(item, item, tokens, 0.0))
    assert [[lengths[job.item] for job in ours.next_batch(0.0)] for _ in range(3)] == [
        [96, 90, 64, 48],
        [40, 32],
        [128],
    ]


def test_a_job_may_come_back() -> None:
    ours = Scheduler[int](Limits())
    job = Job(0, "a", 9, 0.0, deadline=1.0)
    ours.add(job)
    assert ours.next_batch(0.0) == [job] and not ours.drop(job) and ours.next_deadline() is None
    ours.add(job)
    assert ours.next_batch(1.0) == [] and len(ours) == 0
    assert ours.drop(job) and ours.expired(1.0) == []


@pytest.mark.parametrize("queue", [1, 2, 7, 8, 1024])
def test_what_one_task_may_have_in_an_empty_queue(queue: int) -> None:
    limits = Limits(queue=queue)
    ours: Scheduler[int] = Scheduler(limits)
    while ours.room("a"):
        ours.add(Job(len(ours), "a", 9, 0.0))
    assert len(ours) == limits.of_one_task


def test_what_cannot_be_added() -> None:
    with pytest.raises(ValueError, match="expected a job of one token or more, got 0; answer an empty text at once"):
        Job(0, "a", 0, 0.0)
    ours = Scheduler[int](Limits(queue=3))
    ours.add(job := Job(0, "a", 9, 0.0))
    with pytest.raises(ValueError, match="got one of task 'a' that waits already; add a job once"):
        ours.add(job)
    ours.add(Job(1, "a", 9, 0.0))
    with pytest.raises(RuntimeError, match=OF_TASK):
        ours.add(Job(2, "a", 9, 0.0))
    assert [job.item for job in ours.drain()] == [0, 1]


def test_padded_lengths() -> None:
    assert [padded_length(tokens) for tokens in range(1, 4864)] == [naive_length(tokens) for tokens in range(1, 4864)]

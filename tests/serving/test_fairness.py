"""Who waits for whom: bounds of start-time fair queueing, the threshold of the queue, and what is remembered."""

from __future__ import annotations

from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from peft_aot.serving.job import Job
from peft_aot.serving.limits import Limits
from peft_aot.serving.scheduler import Scheduler


class Name:
    """A task or an item of which can be said whether anyone still holds it."""


def fill(ours: Scheduler[str], task: str, tokens: int, count: int) -> None:
    for _ in range(count):
        if ours.room(task):
            ours.add(Job(task, task, tokens, 0.0))


@settings(deadline=None, max_examples=80)
@given(
    st.lists(st.integers(1, 600), min_size=1, max_size=6), st.integers(0, 30), st.integers(1, 64), st.integers(1, 600)
)
def test_one_job_waits_for_one_of_every_other_task(lengths: list[int], before: int, examples: int, own: int) -> None:
    ours = Scheduler[str](Limits(batch_examples=examples))

    def flood() -> None:
        for task, tokens in enumerate(lengths):
            fill(ours, f"other {task}", tokens, 10 if task else 100)

    for _ in range(before):
        flood()
        ours.next_batch(0.0)
    flood()
    ours.add(Job("own", "own", own, 0.0))
    batches = 1
    while "own" not in [job.item for job in ours.next_batch(0.0)]:
        flood()
        batches += 1
    assert batches <= len(lengths) + 1


@settings(deadline=None, max_examples=80)
@given(st.integers(1, 64), st.integers(0, 5), st.integers(1, 4), st.booleans())
def test_equal_tasks_are_never_more_than_a_job_apart(examples: int, before: int, others: int, away: bool) -> None:
    ours = Scheduler[str](Limits(batch_examples=examples))
    tasks = ["late", *(f"other {number}" for number in range(others))]
    for number in range(before):
        for task in tasks[away or number > 1 :]:  # it may have been there before, and gone
            fill(ours, task, 16, 1 if task == "late" else 100)
        ours.next_batch(0.0)
    served: Counter[str] = Counter()
    while ours.drain() if not before else any(job.task == "late" for job in ours.drain()):
        pass
    for _ in range(8):
        for task in tasks:
            fill(ours, task, 16, 70)
        for job in ours.next_batch(0.0):
            served[job.task] += 1
            assert max(served[task] for task in tasks) - min(served[task] for task in tasks) <= 1

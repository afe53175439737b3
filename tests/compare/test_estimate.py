"""What is foreseen: from measured speeds, then from what runs really took; and the peak of memory."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from peft_aot.compare.estimate import EVALUATION_SHARE, Estimator, Speed
from peft_aot.compare.facts import TaskFacts
from peft_aot.compare.memory import PeakMemory, release_unused
from peft_aot.compare.options import CompareOptions
from peft_aot.compare.plan import Plan
from peft_aot.compare.records import Run
from peft_aot.features import Features
from peft_aot.tasks import get_task
from records import record

POINT = {"learning_rate": 1e-3}
PLAN = Plan(("rte", "wnli"), {"aot": [POINT], "lora": [POINT]}, {("wnli", "lora"): "cannot"}, seeds=3)
OPTIONS = CompareOptions("m", Path("out"), ("rte", "wnli"), ("aot", "lora"), trials=1, epochs=4)
FACTS = [
    TaskFacts("rte", get_task("rte"), (), Features([], []), 1000, 100, ()),
    TaskFacts("wnli", get_task("wnli"), (), Features([], []), 10, 10, ()),
]
SPEEDS = {"aot": Speed(0.01, 2.0, 50), "lora": Speed(0.02, 3.0, 70)}
RTE = 4 * (1000 + EVALUATION_SHARE * 100)
WNLI = 4 * (10 + EVALUATION_SHARE * 10)


def test_before_anything_ran() -> None:
    estimator = Estimator(OPTIONS, FACTS, SPEEDS)
    assert estimator.seconds(Run("rte", "aot", 0, POINT, 0)) == pytest.approx(RTE * 0.01 + 2)
    found = estimator.estimate(PLAN, [])
    aot = 3 * (RTE * 0.01 + 2) + 3 * (WNLI * 0.01 + 2)
    assert (found.runs, found.memory_bytes) == (9, 70)
    assert found.seconds == pytest.approx(aot + 3 * (RTE * 0.02 + 3))


def test_what_runs_took_counts_for_more_and_finished_ones_not_at_all() -> None:
    estimator = Estimator(OPTIONS, FACTS, SPEEDS)
    done = [
        record("rte", 0.5, "aot", settings=POINT, train_seconds=10.0),
        record("rte", 0.5, "aot", settings=POINT, seed=1, train_seconds=30.0),
        record("rte", None, "lora", settings=POINT, status="failed", train_seconds=1.0),
    ]
    assert estimator.seconds(Run("rte", "aot", 0, POINT, 2), done) == 20 + 2
    assert estimator.seconds(Run("rte", "lora", 0, POINT, 2), done) == pytest.approx(RTE * 0.02 + 3)
    assert estimator.estimate(PLAN, done).runs == 9 - 3 - 2  # a search in which all failed has no further seeds


def test_the_peak_of_memory_is_seen_and_what_came_before_is_not() -> None:
    with PeakMemory(torch.device("cpu")) as small:
        torch.zeros(1)
    with PeakMemory(torch.device("cpu")) as large:
        block = torch.ones(100_000_000)  # 400 MB
        for _ in range(20):
            block += 1
        del block
    assert large.bytes - small.bytes > 3 * 10**8
    assert large.added > 3 * 10**8 and small.added < 10**8 < small.bytes


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the allocator decides for itself")
def test_what_an_earlier_run_left_unused_does_not_count() -> None:
    blocks = [bytearray(60_000) for _ in range(5_000)]  # 300 MB in pieces too small to be mapped of their own
    pinned = blocks[-1]
    del blocks
    release_unused()
    with PeakMemory(torch.device("cpu")) as after:
        pass
    blocks = [bytearray(60_000) for _ in range(5_000)]
    with PeakMemory(torch.device("cpu")) as during:
        pass
    assert pinned is not None and during.bytes - after.bytes > 2 * 10**8
    del blocks

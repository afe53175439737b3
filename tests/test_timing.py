"""Interleaved timing: arithmetic with a clock of our own, order and refusals."""

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_aot.timing import interleave, summarize


class Clock:
    """A clock that stands still but for what the candidates take."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def spend(self, seconds):
        self.now += seconds


def test_ratio_is_taken_within_each_round():
    clock = Clock()
    calls = {"bare": 0, "twice": 0}

    def candidate(name, seconds):
        def run():
            # the machine becomes ten times slower half-way: the ratio must not see it
            calls[name] += 1
            clock.spend(seconds * (1 if calls[name] <= 5 else 10))

        return run

    found = interleave(
        {"bare": candidate("bare", 0.001), "twice": candidate("twice", 0.002)},
        reference="bare",
        rounds=10,
        warmup=0,
        clock=clock,
    )
    assert found["twice"].ratio == pytest.approx(2)
    assert found["twice"].ratio_low == pytest.approx(2)
    assert found["bare"].ratio == 1
    assert found["bare"].milliseconds == pytest.approx(5.5)
    assert len(found["twice"].samples) == 10


def test_warmup_runs_but_does_not_count():
    calls = []
    found = interleave({"a": lambda: calls.append(1)}, "a", rounds=4, warmup=3)
    assert len(calls) == 7
    assert len(found["a"].samples) == 4


def test_order_changes_and_every_round_has_everyone():
    calls = []
    candidates = {name: (lambda name=name: calls.append(name)) for name in "abc"}
    interleave(candidates, "a", rounds=20, warmup=0, seed=1)
    rounds = [tuple(calls[i : i + 3]) for i in range(0, 60, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len(set(rounds)) > 1


def test_waits_for_the_accelerator_before_each_reading():
    events = []
    interleave(
        {"a": lambda: events.append("run")},
        "a",
        rounds=2,
        warmup=0,
        clock=lambda: events.append("clock") or 1.0 + len(events),
        synchronize=lambda: events.append("wait"),
    )
    assert events == ["wait", "clock", "run", "wait", "clock"] * 2


def test_results_keep_the_order_of_the_candidates():
    assert list(interleave(dict.fromkeys("zxy", list), "x", rounds=2)) == ["z", "x", "y"]


@given(st.lists(st.floats(0.1, 100), min_size=2, max_size=30), st.floats(0.5, 5))
def test_a_constant_factor_is_found_exactly(reference, factor):
    timing = summarize("x", [factor * sample for sample in reference], reference)
    assert timing.ratio == pytest.approx(factor)
    assert timing.ratio_low == pytest.approx(timing.ratio_high)
    assert timing.milliseconds == pytest.approx(factor * statistics.median(reference))


def test_refuses_unknown_reference():
    with pytest.raises(ValueError, match=r"expected reference among \['a'\], got 'b'; pass one of them"):
        interleave({"a": list}, "b")


def test_refuses_a_single_round():
    with pytest.raises(ValueError, match="expected at least 2 rounds, got 1; 30 is a good number"):
        interleave({"a": list}, "a", rounds=1)

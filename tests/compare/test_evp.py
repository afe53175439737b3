"""Expected validation performance against the enumeration of every draw."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peft_aot.compare.evp import expected_best

SCORES = st.lists(st.floats(-1, 1, allow_nan=False), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(SCORES)
def test_it_is_the_mean_of_the_best_over_all_draws_with_replacement(scores: list[float]) -> None:
    for n, value in enumerate(expected_best(scores), start=1):
        draws = [max(draw) for draw in product(scores, repeat=n)]
        assert value == pytest.approx(sum(draws) / len(draws), abs=1e-9)


def test_a_case_by_hand() -> None:
    # one of {0, 1}: on average 0.5; the best of two is 0 only if both are: 3/4
    assert expected_best([1.0, 0.0]) == pytest.approx((0.5, 0.75))


@settings(max_examples=50, deadline=None)
@given(SCORES, st.randoms())
def test_it_never_falls_and_does_not_depend_on_the_order(scores: list[float], random: object) -> None:
    curve = expected_best(scores)
    assert all(later >= earlier - 1e-12 for earlier, later in zip(curve, curve[1:], strict=False))
    assert min(scores) - 1e-12 <= curve[0] and curve[-1] <= max(scores) + 1e-12
    shuffled = list(scores)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert expected_best(shuffled) == pytest.approx(curve)


def test_nothing_run_is_an_empty_curve() -> None:
    assert expected_best([]) == ()

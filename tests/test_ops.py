"""Tensor operations against naive loops, on shapes and batches of hypothesis's choice."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import reference
from peft_aot.ops import (
    ACTIVATIONS,
    add_rows,
    fc_rows,
    kronecker_rows,
    place_distinct,
    place_every,
    square_factors,
    unit_rows,
)

quick = settings(deadline=None, max_examples=40)
SMALL = st.integers(1, 4)
SEED = st.integers(0, 2**16)
PLACES = pytest.mark.parametrize("place", [place_distinct, place_every])


def random(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@quick
@given(tokens=SMALL, embedding=SMALL, rank=SMALL, width=SMALL, seed=SEED)
def test_fc_rows_and_gradients(tokens: int, embedding: int, rank: int, width: int, seed: int) -> None:
    shapes = ((tokens, embedding), (embedding, rank), (rank,), (rank, width), (width,))
    parts = [random(*shape, seed=seed + i).requires_grad_() for i, shape in enumerate(shapes)]
    found = fc_rows(*parts, ACTIVATIONS["gelu"])
    expected = torch.stack([reference.fc_row(row, *parts[1:]) for row in parts[0]])
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    weights = random(tokens, width, seed=seed + 9)
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), parts),
        torch.autograd.grad((expected * weights).sum(), parts),
        strict=True,
    ):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=1e-9)


@quick
@given(a=SMALL, b=SMALL, rank=SMALL, width=SMALL, seed=SEED, data=st.data())
def test_kronecker_rows_and_gradients(a: int, b: int, rank: int, width: int, seed: int, data: st.DataObject) -> None:
    parts = [random(*shape, seed=seed + i).requires_grad_() for i, shape in enumerate([(a, rank), (b, rank)])]
    parts.append(random(rank**2, width, seed=seed + 3).requires_grad_())
    ids = torch.tensor(data.draw(st.lists(st.integers(0, a * b - 1), min_size=1, max_size=6)))
    found = kronecker_rows(ids, *parts)
    expected = reference.kronecker_table(*parts)[ids]
    torch.testing.assert_close(found, expected, atol=1e-12, rtol=1e-10)
    weights = random(len(ids), width, seed=seed + 9)
    for x, y in zip(
        torch.autograd.grad((found * weights).sum(), parts),
        torch.autograd.grad((expected * weights).sum(), parts),
        strict=True,
    ):
        torch.testing.assert_close(x, y, atol=1e-12, rtol=1e-9)


@quick
@given(st.integers(1, 300_000))
def test_square_factors(vocab: int) -> None:
    a, b = square_factors(vocab)
    assert a >= b > 0 and a * b >= vocab
    assert (a - 1) ** 2 < vocab, "no squarer pair"
    assert a * (b - 1) < vocab, "no smaller excess"


def test_square_factors_of_known_vocabularies() -> None:
    assert square_factors(50_265) == (225, 224)
    assert square_factors(1) == (1, 1)


@quick
@given(rows=SMALL, width=st.integers(1, 8), scale=st.floats(1e-3, 1e3), seed=SEED)
def test_unit_rows(rows: int, width: int, scale: float, seed: int) -> None:
    values = random(rows, width, seed=seed) * scale
    found = unit_rows(values)
    for i in range(rows):
        length = (sum(float(x) ** 2 for x in values[i]) + 1e-12) ** 0.5
        torch.testing.assert_close(found[i], values[i] / length, atol=1e-4, rtol=1e-4)
    assert not unit_rows(torch.zeros(2, 3)).any()
    zero = torch.zeros(1, 3, requires_grad=True)
    unit_rows(zero).sum().backward()
    assert zero.grad is not None and torch.isfinite(zero.grad).all()


@st.composite
def batches(draw: st.DrawFn) -> tuple[torch.Tensor, list[int], int]:
    """Token ids with many duplicates, a group for each example, the number of groups (some may be empty)."""
    batch, length = draw(st.integers(1, 5)), draw(st.integers(1, 5))
    ids = draw(st.lists(st.integers(0, 6), min_size=batch * length, max_size=batch * length))
    groups = draw(st.integers(1, 3))
    group_of = draw(st.lists(st.integers(-1, groups - 1), min_size=batch, max_size=batch))
    return torch.tensor(ids).view(batch, length), group_of, groups


def tables(groups: int, seed: int) -> list[torch.Tensor]:
    return [random(7, 3, seed=seed + g).requires_grad_() for g in range(groups)]


def naive(hidden: torch.Tensor, ids: torch.Tensor, group_of: list[int], of: list[torch.Tensor]) -> torch.Tensor:
    return reference.add_rows(hidden, ids, [None if g < 0 else of[g] for g in group_of])


@PLACES
@quick
@given(case=batches(), seed=SEED)
def test_added_rows_and_gradients(place: object, case: tuple[torch.Tensor, list[int], int], seed: int) -> None:
    ids, group_of, groups = case
    of = tables(groups, seed)
    hidden = random(*ids.shape, 3, seed=seed + 7).requires_grad_()
    placement = place(ids, group_of, groups)
    found = add_rows(hidden, [of[g][placement.tokens[g]] for g in range(groups)], placement)
    expected = naive(hidden, ids, group_of, of)
    assert torch.equal(found, expected)
    weights = random(*hidden.shape, seed=seed + 8)
    for a, b in zip(
        torch.autograd.grad((found * weights).sum(), [hidden, *of], allow_unused=True),
        torch.autograd.grad((expected * weights).sum(), [hidden, *of], allow_unused=True),
        strict=True,
    ):
        torch.testing.assert_close(a if a is not None else torch.zeros(()), b if b is not None else a * 0)


@quick
@given(case=batches())
def test_distinct_means_once(case: tuple[torch.Tensor, list[int], int]) -> None:
    ids, group_of, groups = case
    placement = place_distinct(ids, group_of, groups)
    for group in range(groups):
        wanted = {int(v) for i, g in enumerate(group_of) if g == group for v in ids[i]}
        assert placement.tokens[group].tolist() == sorted(wanted)
    assert placement.zero_row is (-1 in group_of)


@PLACES
@quick
@given(case=batches(), seed=SEED)
def test_permuting_the_batch_permutes_the_result(
    place: object, case: tuple[torch.Tensor, list[int], int], seed: int
) -> None:
    ids, group_of, groups = case
    order = torch.randperm(len(group_of), generator=torch.Generator().manual_seed(seed))
    of = tables(groups, seed)
    hidden = random(*ids.shape, 3, seed=seed + 7)

    def run(ids: torch.Tensor, group_of: list[int], hidden: torch.Tensor) -> torch.Tensor:
        placement = place(ids, group_of, groups)
        return add_rows(hidden, [of[g][placement.tokens[g]] for g in range(groups)], placement)

    straight = run(ids, group_of, hidden)
    assert torch.equal(run(ids[order], [group_of[i] for i in order], hidden[order]), straight[order])


@PLACES
def test_neighbours_and_padding_do_not_matter(place: object) -> None:
    of = tables(2, 0)
    ids = torch.tensor([[3, 1, 3], [5, 0, 0]])
    hidden = random(2, 3, 3, seed=1)

    def run(ids: torch.Tensor, group_of: list[int], hidden: torch.Tensor) -> torch.Tensor:
        placement = place(ids, group_of, 2)
        return add_rows(hidden, [of[g][placement.tokens[g]] for g in range(2)], placement)

    both = run(ids, [1, 0], hidden)
    assert torch.equal(run(ids[:1], [1], hidden[:1]), both[:1])
    assert torch.equal(run(ids[1:, :1], [0], hidden[1:, :1]), both[1:, :1])
    padded = torch.cat([ids, torch.zeros(2, 4, dtype=torch.long)], dim=1)
    assert torch.equal(run(padded, [1, 0], random(2, 7, 3, seed=2))[:, :0], both[:, :0])
    wide = torch.cat([hidden, random(2, 4, 3, seed=2)], dim=1)
    assert torch.equal(run(padded, [1, 0], wide)[:, :3], both)


def test_no_group_at_all_leaves_the_hidden_states() -> None:
    ids = torch.tensor([[3, 1], [5, 0]])
    hidden = random(2, 2, 3, seed=1)
    for place in (place_distinct, place_every):
        assert torch.equal(add_rows(hidden, [], place(ids, [-1, -1], 0)), hidden)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_hidden_states_keep_their_dtype(dtype: torch.dtype) -> None:
    ids = torch.tensor([[0, 2]])
    placement = place_distinct(ids, [0], 1)
    rows = torch.ones(2, 3)
    found = add_rows(torch.zeros(1, 2, 3, dtype=dtype), [rows], placement)
    assert found.dtype == dtype and bool((found == 1).all())

"""The row cache against an oracle that knows every row, and against CLOCK written out naively."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from peft_aot.tables.cache import RowCache
from reference import Clock

LAYERS, WIDTH = 2, 3
PAGE = LAYERS * WIDTH * 4


def row_of(task: int, token: int) -> Tensor:
    """What the cache must give for a token, (L, D)."""
    return torch.arange(LAYERS * WIDTH).view(LAYERS, WIDTH) + 1000.0 * task + 10 * token


def rows_of(task: int, tokens: Tensor) -> Tensor:
    return torch.stack([row_of(task, token) for token in tokens.tolist()], dim=1)


def cache_of(pages: int) -> RowCache:
    return RowCache(pages * PAGE + PAGE - 1, LAYERS, WIDTH, torch.float32)


def ask(cache: RowCache, task: int, tokens: Tensor) -> Tensor:
    """Take, compute what is missing, put it in; return which were missing."""
    rows = torch.full((LAYERS, len(tokens), WIDTH), float("nan"))
    missing = cache.take(task, tokens, rows)
    there = [place for place in range(len(tokens)) if place not in missing.tolist()]
    assert torch.equal(rows[:, there], rows_of(task, tokens)[:, there])
    assert bool(rows[:, missing].isnan().all()), "what is not found is left alone"
    if len(missing):
        cache.put(task, tokens[missing], rows_of(task, tokens[missing]))
    return tokens[missing]


@pytest.mark.parametrize("seed", range(8))
def test_rows_are_right_and_pages_are_given_up_as_by_clock(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pages = int(torch.randint(1, 12, (), generator=generator))
    cache, clock = cache_of(pages), Clock(pages)
    assert cache.pages == pages
    for _ in range(120):
        task = int(torch.randint(3, (), generator=generator))
        tokens = torch.randperm(9, generator=generator)[: int(torch.randint(1, 9, (), generator=generator))]
        missing = ask(cache, task, tokens).tolist()
        assert missing == clock.take([(task, token) for token in tokens.tolist()])
        clock.put([(task, token) for token in missing][:pages])
        assert len(cache) == len(clock.keys) <= pages
    assert cache.hits + cache.misses > 120 and (cache.hits > 0 or pages == 1)


def test_what_is_there_already_may_be_put_again() -> None:
    cache = cache_of(3)
    cache.put(0, torch.tensor([1]), rows_of(0, torch.tensor([1])))
    tokens = torch.tensor([1, 2, 3, 4])
    cache.put(0, tokens, rows_of(0, tokens))
    cache.put(0, tokens.flip(0), rows_of(0, tokens.flip(0)))
    ask(cache, 0, tokens)
    assert len(cache) == 3


def test_a_page_that_changes_hands_within_one_put_holds_the_last_row() -> None:
    cache = cache_of(4)
    cache.put(0, torch.tensor([10, 11, 12, 13]), rows_of(0, torch.tensor([10, 11, 12, 13])))
    tokens = torch.tensor([12, 20, 21, 22])  # the hand passes over 12, and takes its page for 22
    cache.put(0, tokens, rows_of(0, tokens))
    rows = torch.zeros(LAYERS, 1, WIDTH)
    assert not len(cache.take(0, torch.tensor([22]), rows)) and torch.equal(rows, rows_of(0, torch.tensor([22])))
    assert len(cache.take(0, torch.tensor([12]), rows)) == 1


def test_a_budget_of_less_than_a_page_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a budget of at least one page of 24 bytes .* got 23; give more"):
        RowCache(PAGE - 1, LAYERS, WIDTH, torch.float32)


def test_threads_get_their_own_rows() -> None:
    cache = cache_of(5)

    def work(task: int) -> None:
        generator = torch.Generator().manual_seed(task)
        for _ in range(150):
            ask(cache, task, torch.randperm(8, generator=generator)[:4])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(cache) == 5


def test_what_was_interrupted_is_not_taken_for_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(4)
    ask(cache, 0, torch.tensor([1, 2]))

    def interrupt(*_: object) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Tensor, "index_select", interrupt)
        cache.put(0, torch.tensor([3, 4, 5]), rows_of(0, torch.tensor([3, 4, 5])))
    assert len(cache) == 0
    ask(cache, 0, torch.tensor([1, 2, 3, 4, 5]))

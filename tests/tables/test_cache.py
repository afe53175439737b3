"""The row cache against an oracle that knows every row, and against CLOCK written out naively."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor

from peft_aot.tables.cache import Key, RowCache
from reference import Clock

LAYERS, WIDTH = 2, 3
PAGE = LAYERS * WIDTH * 4


def row_of(task: int, token: int) -> Tensor:
    """What the cache must give for a token, (L, D)."""
    return torch.arange(LAYERS * WIDTH).view(LAYERS, WIDTH) + 1000.0 * task + 10 * token


def rows_of(keys: Sequence[Key]) -> Tensor:
    return torch.stack([row_of(task, token) for task, token in keys], dim=1)


def keys_of(task: int, *tokens: int) -> list[Key]:
    return [(task, token) for token in tokens]


def cache_of(pages: int) -> RowCache:
    return RowCache(pages * PAGE + PAGE - 1, LAYERS, WIDTH, torch.float32)


def ask(cache: RowCache, keys: Sequence[Key], seed: int = 0) -> list[Key]:
    """Take into columns in any order, compute what is missing, put it in; return which were missing."""
    columns = torch.randperm(len(keys) + 2, generator=torch.Generator().manual_seed(seed))[: len(keys)].tolist()
    rows = torch.full((LAYERS, len(keys) + 2, WIDTH), float("nan"))
    missing = cache.take(keys, columns, rows)
    there = [number for number in range(len(keys)) if number not in missing]
    written = [columns[number] for number in there]
    if there:
        assert torch.equal(rows[:, written], rows_of([keys[number] for number in there]))
    rows[:, written] = float("nan")
    assert bool(rows.isnan().all()), "all other columns are left alone"
    lacking = [keys[number] for number in missing]
    if lacking:
        cache.put(lacking, rows_of(lacking))
    return lacking


@pytest.mark.parametrize("seed", range(8))
def test_rows_are_right_and_pages_are_given_up_as_by_clock(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    pages = int(torch.randint(1, 12, (), generator=generator))
    every = [(task, token) for task in range(3) for token in range(5)]
    cache, clock = cache_of(pages), Clock(pages)
    assert cache.pages == pages
    for step in range(120):
        number = int(torch.randint(1, 9, (), generator=generator))
        keys = [every[place] for place in torch.randperm(len(every), generator=generator)[:number].tolist()]
        missing = ask(cache, keys, step)
        assert missing == clock.take(keys)
        clock.put(missing[:pages])
        assert len(cache) == len(clock.keys) <= pages
    assert cache.hits + cache.misses > 120 and (cache.hits > 0 or pages == 1)


def test_what_is_there_already_may_be_put_again() -> None:
    cache = cache_of(3)
    cache.put(keys_of(0, 1), rows_of(keys_of(0, 1)))
    keys = keys_of(0, 1, 2, 3, 4)
    cache.put(keys, rows_of(keys))
    cache.put(keys[::-1], rows_of(keys[::-1]))
    ask(cache, keys)
    assert len(cache) == 3


def test_a_page_that_changes_hands_within_one_put_holds_the_last_row() -> None:
    cache = cache_of(4)
    cache.put(keys_of(0, 10, 11, 12, 13), rows_of(keys_of(0, 10, 11, 12, 13)))
    keys = keys_of(0, 12, 20, 21, 22)  # the hand passes over 12, and takes its page for 22
    cache.put(keys, rows_of(keys))
    rows = torch.zeros(LAYERS, 1, WIDTH)
    assert not cache.take(keys_of(0, 22), [0], rows) and torch.equal(rows, rows_of(keys_of(0, 22)))
    assert cache.take(keys_of(0, 12), [0], rows) == [0]


def test_a_budget_of_less_than_a_page_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a budget of at least one page of 24 bytes .* got 23; give more"):
        RowCache(PAGE - 1, LAYERS, WIDTH, torch.float32)


def test_threads_get_their_own_rows() -> None:
    cache = cache_of(5)

    def work(task: int) -> None:
        generator = torch.Generator().manual_seed(task)
        for _ in range(150):
            ask(cache, keys_of(task, *torch.randperm(8, generator=generator)[:4].tolist()))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(work, range(4)))
    assert len(cache) == 5


def test_what_was_interrupted_is_not_taken_for_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    cache = cache_of(4)
    ask(cache, keys_of(0, 1, 2))

    def interrupt(*_: object) -> Tensor:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Tensor, "index_select", interrupt)
        cache.put(keys_of(0, 3, 4, 5), rows_of(keys_of(0, 3, 4, 5)))
    assert len(cache) == 0
    ask(cache, keys_of(0, 1, 2, 3, 4, 5))

"""Single texts are encoded as the tokenizer's own call encodes them."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from peft_aot.serving.encode import Encoder
from served_models import TEXTS, make_tokenizer

LONG = " ".join(TEXTS)


@pytest.mark.parametrize(
    ("text", "pair", "arguments"),
    [
        (TEXTS[0], None, {}),
        (TEXTS[0], TEXTS[1], {}),
        (LONG, None, {"max_length": 7}),
        (LONG, TEXTS[1], {"max_length": 12, "truncation": "only_first"}),
        (TEXTS[1], LONG, {"max_length": 12, "truncation": "only_second"}),
        (LONG, LONG, {"max_length": 13, "truncation": "longest_first"}),
        (TEXTS[2], None, {"add_special_tokens": False}),
        (LONG * 4, None, {"max_length": 999}),
    ],
)
def test_as_the_tokenizers_call(text: str, pair: str | None, arguments: dict[str, object]) -> None:
    tokenizer = make_tokenizer()
    found = Encoder(tokenizer, 40).encode(text, pair, arguments)
    limit = min(int(arguments.get("max_length", 40)), 40)  # type: ignore[call-overload]
    expected = tokenizer(
        text, pair, **{"truncation": True, **arguments, "max_length": limit}, return_token_type_ids=True
    )
    assert list(found.ids) == expected["input_ids"]
    assert list(found.type_ids) == expected["token_type_ids"]
    assert len(found) == len(expected["input_ids"])


def test_threads_do_not_meet() -> None:
    encoder = Encoder(make_tokenizer(), 40)
    calls = [(text, limit) for text in (LONG, *TEXTS) for limit in (5, 9, 40)] * 20
    expected = [list(encoder.encode(text, None, {"max_length": limit}).ids) for text, limit in calls]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda call: list(encoder.encode(call[0], None, {"max_length": call[1]}).ids), calls))
    assert found == expected


@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_is_the_tokenizers(side: str) -> None:
    tokenizer = make_tokenizer()
    tokenizer.padding_side = side
    encoder = Encoder(tokenizer, 40)
    found = encoder.pad([encoder.encode(text, None, {}) for text in TEXTS], torch.device("cpu"))
    expected = tokenizer(TEXTS, padding=True, return_tensors="pt")
    assert set(found) == set(tokenizer.model_input_names)
    for name, tensor in found.items():
        assert torch.equal(tensor, expected[name])


@pytest.mark.parametrize("way", ["only_first", False])
def test_what_cannot_be_cut_enough_is_refused(way: str | bool) -> None:
    with pytest.raises(ValueError, match=rf"expected at most 8 tokens, got \d+, and truncation={way!r} cannot"):
        Encoder(make_tokenizer(), 40).encode("a", LONG, {"max_length": 8, "truncation": way})


def test_a_limit_below_the_special_tokens_is_refused() -> None:
    with pytest.raises(ValueError, match=r"expected at most 1 tokens, got \d+, and truncation=True cannot"):
        Encoder(make_tokenizer(), 40).encode(LONG, None, {"max_length": 1, "truncation": True})


def test_slow_tokenizers_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected a fast tokenizer, got SimpleNamespace; load .* tokenizer.json"):
        Encoder(SimpleNamespace(is_fast=False), 40)  # type: ignore[arg-type]

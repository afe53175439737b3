"""Search spaces: every point once, every value early, nothing invalid."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from peft_aot.compare.space import check_methods, head_rate_axes, parse_space, parse_spaces, points, search_points
from peft_aot.methods import get_method, method_names


@given(st.lists(st.integers(1, 5), min_size=1, max_size=3))
def test_every_combination_comes_once(sizes: list[int]) -> None:
    space = {f"axis{i}": tuple(range(size)) for i, size in enumerate(sizes)}
    found = points(space)
    assert len(found) == math.prod(sizes)
    assert len({json.dumps(point, sort_keys=True) for point in found}) == len(found)


def test_the_longest_axis_turns_fastest_whatever_its_place() -> None:
    found = points({"learning_rate": (1, 2), "rank": (4, 8, 16, 32)})
    assert {point["rank"] for point in found[:4]} == {4, 8, 16, 32}
    assert {point["learning_rate"] for point in found[:4]} == {1, 2}
    assert list(found[0]) == ["learning_rate", "rank"]


@pytest.mark.parametrize("name", method_names())
def test_every_axis_of_a_method_can_be_replaced(name: str) -> None:
    method = get_method(name)
    assert len(search_points(method, method.space, 8, "bert", 512)) == 8


@pytest.mark.parametrize("name", method_names())
def test_half_the_space_has_seen_every_value_of_every_axis(name: str) -> None:
    space = get_method(name).space
    first = points(space)[: max(map(len, space.values()))]
    for axis, values in space.items():
        assert {point[axis] for point in first} == set(values)


def test_all_methods_have_spaces_of_one_size_that_are_valid() -> None:
    sizes = {name: len(search_points(get_method(name), {}, 8, "bert", 512)) for name in method_names()}
    assert set(sizes.values()) == {8}
    assert all(len(points(get_method(name).space)) == 8 for name in method_names())


def test_what_a_user_writes() -> None:
    assert parse_space("aot.learning_rate=1e-3, 3e-3") == ("aot", "learning_rate", (1e-3, 3e-3))
    assert parse_space("lora.rank=4,8") == ("lora", "rank", (4, 8))
    assert parse_space("aot.activation=relu") == ("aot", "activation", ("relu",))
    assert parse_space("hiwi.share=true,False") == ("hiwi", "share", (True, False))
    for text in ("aot", "aot.rank", "rank=3", ".=1"):
        with pytest.raises(ValueError, match=r"expected METHOD\.SETTING=VALUE,VALUE, got"):
            parse_space(text)


def test_several_axes_that_a_user_writes() -> None:
    found = parse_spaces(["lora.rank=4,8", "aot.dropout=0.1", "lora.learning_rate=1e-3"])
    assert found == {"lora": {"rank": (4, 8), "learning_rate": (1e-3,)}, "aot": {"dropout": (0.1,)}}
    with pytest.raises(
        ValueError, match=r"expected each axis once, got lora\.rank twice; write all its values into one"
    ):
        parse_spaces(["lora.rank=4", "aot.rank=4", "lora.rank=8"])


def test_axes_are_replaced_and_added() -> None:
    found = search_points(get_method("aot"), {"rank": (4,), "dropout": (0.0, 0.5)}, 8, "bert", 512)
    assert {point["rank"] for point in found} == {4}
    assert {point["dropout"] for point in found} == {0.0, 0.5}


def test_one_rate_for_the_head_under_every_method() -> None:
    axes = head_rate_axes(("aot", "head", "full"), 5e-2)
    assert axes == {"aot": {"head_learning_rate": (5e-2,)}, "full": {"head_learning_rate": (5e-2,)}}
    found = search_points(get_method("aot"), axes["aot"], 4, "bert", 512)
    assert {point["head_learning_rate"] for point in found} == {5e-2}
    assert len({point["learning_rate"] for point in found}) == 4


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("aot", {"rank": (0,)}, r"search space of 'aot' with a valid point, got 4 .*expected a rank of at least 1"),
        (
            "aot",
            {"dropout": (1.5,)},
            r"with a valid point, got 8 without one \(the first: expected dropout in \[0, 1\)",
        ),
        ("prefix", {"virtual_tokens": (600,)}, r"expected virtual_tokens below the backbone's 512 positions, got 600"),
        ("lora", {"learning_rate": (0.0,)}, r"expected learning_rate above 0, got 0\.0"),
        ("lora", {"weight_decay": (-1.0,)}, r"expected weight_decay of at least 0, got -1\.0"),
        ("lora", {"virtual_tokens": (3,)}, r"expected no virtual_tokens with 'lora', got 3"),
        ("lora", {"learning_rate": ()}, r"expected values for 'learning_rate' in a search space, got none"),
        ("aot", {"droput": (0.1,)}, r"unknown setting 'droput' of method 'aot'; did you mean 'dropout'\?"),
        ("lora", {"rnk": (4,)}, r"unknown setting 'rnk' of method 'lora'; did you mean 'rank'\?"),
        ("lora", {"q": (4,)}, r"unknown setting 'q' of method 'lora'; choose one of learning_rate, head_learning_rate"),
        ("full", {"r": (3,)}, r"expected no r with 'full', got 3; it would change nothing, choose among learning_rate"),
        ("full", {"dropout": (0.1,)}, r"unknown setting 'dropout' of method 'full'; choose one of learning_rate"),
        ("head", {"rank": (4, 8)}, r"expected no rank with 'head', got 4, 8; it would change nothing"),
        ("head", {"r": (4,)}, r"expected no r with 'head', got 4; it would change nothing"),
        ("aot-constant", {"rank": (4,)}, r"expected no rank with 'aot-constant', got 4"),
        ("lora", {"r": (4,)}, r"expected the axis 'rank' of 'lora', got 'r', which it stands for; use rank"),
        ("hiwi", {"r": (4,)}, r"expected the axis 'rank' of 'hiwi', got 'r'"),
        (
            "prefix",
            {"num_virtual_tokens": (4,)},
            r"expected the axis 'virtual_tokens' of 'prefix', got 'num_virtual_tokens', .*; use virtual_tokens",
        ),
        ("lora", {"rank": ("abc",)}, r"the first: expected a whole number as rank, got 'abc'\)"),
        ("lora", {"rank": (8.0,)}, r"the first: expected a whole number as rank, got 8\.0\)"),
        ("prompt", {"virtual_tokens": ("x",)}, r"the first: expected a whole number as virtual_tokens, got 'x'\)"),
        ("lora", {"learning_rate": ("fast",)}, r"the first: expected a number as learning_rate, got 'fast'\)"),
        ("lora", {"learning_rate": (math.inf,)}, r"the first: expected a finite number as learning_rate, got inf\)"),
        ("lora", {"weight_decay": (math.nan,)}, r"the first: expected a finite number as weight_decay, got nan\)"),
        ("lora", {"lora_alpha": (math.inf,)}, r"the first: expected a finite number as lora_alpha, got inf\)"),
        ("lora", {"rank": (8, 4, 8)}, r"expected different values for 'rank' in a search space, got 8 twice"),
        (
            "lora",
            {"learning_rate": (1e-3, 0.001)},
            r"expected different values for 'learning_rate' .* got 0\.001 twice",
        ),
        ("lora", {"lora_alpha": (8, 8.0)}, r"expected different values for 'lora_alpha' .* got 8\.0 twice"),
        ("lora", {"rank": (0, 8)}, r"expected at least 8 valid points .* got 4 \(not valid: expected a rank"),
        (
            "lora",
            {"rank": (0, 8, 16)},
            r"expected values of 'rank' that 'lora' can be trained with, got 0 \(expected a",
        ),
    ],
)
def test_bad_spaces_are_refused(method: str, changes: dict[str, tuple[object, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        search_points(get_method(method), changes, 8, "bert", 512)


def test_a_space_of_a_method_that_is_not_compared_is_refused() -> None:
    with pytest.raises(
        ValueError, match="expected a search space of a compared method, got 'lorra'; did you mean 'lora"
    ):
        check_methods({"lorra": {}}, ("aot", "lora"))

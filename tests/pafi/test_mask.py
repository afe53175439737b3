"""The mask against a stable sort of all magnitudes; its memory, its fingerprint, its refusals."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from peft_aot.pafi import mask
from peft_aot.pafi.mask import fingerprint, smallest_entries

# ties, both zeros, infinity, subnormal numbers of float32 and bfloat16, neighbours in float32 and in float64 only
VALUES = [0.0, -0.0, 1.0, -1.0, 0.5, 3.0, -2.0, 65504.0, 1e-40, -1e-40, 6e-8, 1 + 2**-23, 1 + 2**-40, -1 - 2**-40]
VALUES += [math.inf, -math.inf]
DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


def naive(weights: Mapping[str, torch.Tensor], sparsity: float, scope: str) -> dict[str, list[int]]:
    if scope == "per_tensor":
        parts = [naive({name: weight}, sparsity, "global") for name, weight in weights.items()]
        return {name: indices for part in parts for name, indices in part.items()}
    places = [(name, i) for name, weight in weights.items() for i in range(weight.numel())]
    magnitudes = torch.cat([weight.reshape(-1).double().abs() for weight in weights.values()])
    first = torch.sort(magnitudes, stable=True).indices[: int(sparsity * len(places))]
    chosen: dict[str, list[int]] = {}
    for name, i in sorted(places[p] for p in first.tolist()):
        chosen.setdefault(name, []).append(i)
    return chosen


@st.composite
def backbones(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Weights of up to three dimensions, some with their dimensions swapped and so not contiguous."""
    weights = {}
    dtypes = draw(st.sampled_from([DTYPES, DTYPES[1:], DTYPES[1:2]]))
    for i in range(draw(st.integers(1, 4))):
        shape = draw(st.lists(st.integers(0 if i else 1, 5), max_size=3))
        values = draw(st.lists(st.sampled_from(VALUES), min_size=math.prod(shape), max_size=math.prod(shape)))
        weight = torch.tensor(values, dtype=torch.float64).reshape(shape).to(draw(st.sampled_from(dtypes)))
        weights[f"w{i}"] = weight.permute(draw(st.permutations(range(len(shape)))))
    return weights


@settings(deadline=None, max_examples=200)
@given(backbones(), st.sampled_from([1, 0.5, 0.3, 0.07, 1.0]), st.sampled_from(mask.SCOPES), st.integers(1, 9))
def test_same_as_a_stable_sort(weights: dict[str, torch.Tensor], sparsity: float, scope: str, chunk: int) -> None:
    expected = naive(weights, sparsity, scope)
    with patch.object(mask, "CHUNK", chunk):
        if not expected:
            with pytest.raises(ValueError, match="mask would be empty"):
                smallest_entries(weights, sparsity, scope)
            return
        found = smallest_entries(weights, sparsity, scope)
    assert {name: indices.tolist() for name, indices in found.items()} == expected
    assert all(indices.dtype == torch.int64 for indices in found.values())


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**16), st.sampled_from(DTYPES), st.sampled_from(mask.SCOPES))
def test_same_as_a_stable_sort_on_normal_weights(seed: int, dtype: torch.dtype, scope: str) -> None:
    generator = torch.Generator().manual_seed(seed)
    shapes = [(40, 30), (7,), (30, 41)]
    weights = {
        name: nn.Parameter((torch.randn(shape, generator=generator, dtype=torch.float64) * 0.02).to(dtype))
        for name, shape in zip("abc", shapes, strict=True)
    }
    found = smallest_entries(weights, 0.05, scope)
    assert {name: indices.tolist() for name, indices in found.items()} == naive(weights, 0.05, scope)


def test_by_hand() -> None:
    weights = {"b": torch.tensor([[3.0, -0.5], [0.5, 2.0]]), "a": torch.tensor([0.5, -0.0, 9.0, 7.0])}
    found = smallest_entries(weights, 0.4, "global")  # 3 of 8: the zero, and the first two of three equal ones
    assert {name: indices.tolist() for name, indices in found.items()} == {"b": [1, 2], "a": [1]}
    found = smallest_entries(weights, 0.25, "per_tensor")
    assert {name: indices.tolist() for name, indices in found.items()} == {"b": [1], "a": [1]}
    assert list(smallest_entries({**weights, "c": torch.zeros(3)}, 0.3, "per_tensor")) == ["b", "a"]


def test_differences_below_float32_count_in_float64_only() -> None:
    close = [1 + 2**-40, 1.0]
    weights = {dtype: torch.tensor(close, dtype=dtype) for dtype in (torch.float64, torch.float32)}
    assert smallest_entries({"w": weights[torch.float64]}, 0.5, "global")["w"].tolist() == [1]
    assert smallest_entries({"w": weights[torch.float32]}, 0.5, "global")["w"].tolist() == [0]
    mixed = smallest_entries({"a": weights[torch.float64], "b": weights[torch.float32]}, 0.75, "global")
    assert {name: indices.tolist() for name, indices in mixed.items()} == {"a": [1], "b": [0, 1]}


class Allocations(TorchDispatchMode):
    """Notes the bytes of the largest tensor that is made, views of `known` left out."""

    def __init__(self, known: torch.Tensor) -> None:
        super().__init__()
        self.known, self.largest = known.untyped_storage().data_ptr(), 0

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (list, tuple)) else [out]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().data_ptr() != self.known:
                self.largest = max(self.largest, tensor.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("contiguous", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_second_copy_of_the_weights(dtype: torch.dtype, contiguous: bool) -> None:
    weight = torch.empty(3000, 1000, dtype=dtype).normal_()
    chunk = 1 << 17
    with patch.object(mask, "CHUNK", chunk), Allocations(weight) as allocations:
        smallest_entries({"w": weight if contiguous else weight.t()}, 0.005, "global")
    assert allocations.largest <= 8 * chunk < weight.nbytes / 4


def test_nan_is_never_chosen() -> None:
    nan = float("nan")
    for dtype in DTYPES:
        weight = torch.tensor([nan, 2.0, -nan, -math.inf, 1.0], dtype=dtype)
        assert smallest_entries({"w": weight}, 0.6, "global")["w"].tolist() == [1, 3, 4]
        with pytest.raises(ValueError, match="expected 4 weights that are numbers, got fewer: there is NaN in w; load"):
            smallest_entries({"sound": weight[:0], "w": weight}, 0.8, "global")


@pytest.mark.parametrize("sparsity", [0, 0.0, -0.1, 1.01, 2, True, float("nan"), math.inf, "0.5", None])
def test_sparsity_outside_its_range_is_refused(sparsity: object) -> None:
    with pytest.raises(ValueError, match=r"expected sparsity in \(0, 1\], got .*; 0.005 trains"):
        smallest_entries({"w": torch.ones(4)}, sparsity, "global")


def test_unknown_scope_is_refused() -> None:
    with pytest.raises(ValueError, match="expected a known scope, got 'per-tensor'; did you mean 'per_tensor'"):
        smallest_entries({"w": torch.ones(4)}, 0.5, "per-tensor")


def test_an_empty_mask_is_refused() -> None:
    weights = {"a": torch.ones(150), "b": torch.ones(150)}
    assert list(smallest_entries(weights, 0.005, "global")) == ["a"]
    with pytest.raises(
        ValueError, match="got sparsity=0.005 of 300 entries with scope='per_tensor': the mask would be"
    ):
        smallest_entries(weights, 0.005, "per_tensor")
    with pytest.raises(ValueError, match="of 0 entries .*: the mask would be empty; raise sparsity or target more"):
        smallest_entries({}, 1.0, "global")


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn, torch.complex64])
def test_weights_that_are_not_plain_floats_are_refused(dtype: torch.dtype) -> None:
    expected = (
        rf"expected floating-point weights \(float64, float32, float16, bfloat16\), got {dtype} in layer.1; load the "
        "backbone without quantization, or leave this weight out with exclude_modules"
    )
    with pytest.raises(ValueError, match=expected):
        smallest_entries({"layer.0": torch.ones(2), "layer.1": torch.zeros(2).to(dtype)}, 0.5, "global")


def test_offloaded_weights_are_refused() -> None:
    with pytest.raises(ValueError, match=r"expected weights in memory, got w on device 'meta' .*; load the backbone"):
        smallest_entries({"w": torch.empty(4, device="meta")}, 0.5, "global")


def test_tied_weights_are_refused() -> None:
    whole = torch.ones(4, 4)
    tied = r"expected weights that share no memory, got (?P<a>\w+) and (?P<b>\w+) on .*; leave one .* exclude_modules"
    other = torch.ones(4)
    for first, second in [(whole, whole), (whole, whole.t()), (whole[:3], whole[2:]), (whole, whole[3])]:
        with pytest.raises(ValueError, match=tied) as error:
            smallest_entries({"a": first, "x": other, "b": second}, 0.5, "global")
        assert "a and b" in str(error.value) or "b and a" in str(error.value)
    disjoint = {"a": whole[:2], "b": whole[2:], "c": whole[2:2], "d": torch.empty(0), "e": torch.empty(0)}
    assert list(smallest_entries(disjoint, 1.0, "global")) == ["a", "b"]


def test_fingerprint_is_the_one_that_adapters_on_disk_hold() -> None:
    indices = [torch.tensor([0, 5]), torch.tensor([], dtype=torch.int64), torch.tensor([2**40])]
    assert fingerprint(["a.weight", "ä", "b"], [(2, 3), (), torch.Size([2**41])], indices) == "d49f45d38d0ff14f"


def test_fingerprint_depends_on_everything() -> None:
    def one(a: str = "a", b: str = "b", shape: tuple[int, ...] = (2, 3), i: tuple[int, ...] = (0, 4)) -> str:
        return fingerprint([a, b], [shape, (6,)], [torch.tensor(i, dtype=torch.int64), torch.tensor([1, 2])])

    different = [one(), one(a="c"), one(b="c"), one("b", "a"), one(shape=(3, 2)), one(shape=(6,)), one(shape=(2, 3, 1))]
    different += [one(i=(0, 5)), one(i=(1, 4)), one(i=(0,)), one(i=()), one(i=(0, 4, 5)), one(a="a ", b="b")]
    different += [fingerprint(["a"], [(2, 3)], [torch.tensor([0, 4])])]
    assert len(set(different)) == len(different)
    assert one() == one()
    assert all(len(f) == 16 and set(f) <= set("0123456789abcdef") for f in different)
    with pytest.raises(ValueError, match="shorter"):
        fingerprint(["a", "b"], [(1,)], [torch.tensor([0])])

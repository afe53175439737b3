"""That factors side by side give the rows that each block's module computes, whichever blocks are asked for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from peft_aot import AoTConfig
from peft_aot.aot.reparam import HiddenBottleneck, RowsModule, make_rows
from peft_aot.aot.stacked import StackedFactors

VOCABULARY = 50
FIELDS: dict[str, dict[str, Any]] = {
    "fc": {"activation": "gelu"},
    "raw": {"normalize_embeddings": False, "activation": "tanh"},
    "random": {"bottleneck_input": "random"},
    "kron": {"reparam": "kron"},
    "constant": {"reparam": "constant"},
}


def module(config: AoTConfig, embedding_dim: int, width: int) -> RowsModule:
    made = make_rows(config, embedding_dim, width)
    assert not isinstance(made, HiddenBottleneck)
    return made.eval()


@pytest.mark.parametrize("kind", FIELDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", range(6))
def test_the_rows_of_the_modules(kind: str, dtype: torch.dtype, seed: int) -> None:
    torch.manual_seed(seed)
    layers, rank, size, width, tokens = (int(torch.randint(1, 9, ())) for _ in range(5))
    config = AoTConfig(r=rank, init_weights=False, vocab_size=VOCABULARY, **FIELDS[kind])
    there = torch.rand(layers) < 0.7
    modules = [module(config, size, width).to(dtype) if bool(has) else None for has in there]
    stacked = StackedFactors(modules)
    ids = torch.randperm(VOCABULARY)[:tokens]
    embeddings = torch.randn(tokens, size).to(dtype)
    first = int(torch.randint(layers, ()))
    for blocks in (slice(None), slice(first, layers), slice(0, first + 1), slice(first, first + 1)):
        asked = modules[blocks]
        rows = torch.full((len(asked), tokens, width), float("nan"), dtype=dtype)
        with torch.no_grad():
            stacked.compute(rows, ids, stacked.inputs(embeddings), blocks)
            for found, computes in zip(rows, asked, strict=True):
                expected = torch.zeros(tokens, width) if computes is None else computes(ids, embeddings).float()
                tolerance = 1e-5 if dtype == torch.float32 else 3e-2
                torch.testing.assert_close(found.float(), expected, rtol=tolerance, atol=tolerance * 3)


def test_factors_are_copied_and_numbered() -> None:
    own = module(AoTConfig(r=2, init_weights=False, vocab_size=VOCABULARY), 3, 4)
    one, other = StackedFactors([own, None]), StackedFactors([own, None])
    assert one.number != other.number
    assert one.nbytes == sum(p.nbytes for p in own.parameters()) and one.dtype == torch.float32
    rows = torch.empty(2, 1, 4)
    with torch.no_grad():
        one.compute(rows, torch.tensor([0]), one.inputs(torch.ones(1, 3)))
        before = rows.clone()
        own.w2.fill_(7.0)
        one.compute(rows, torch.tensor([0]), one.inputs(torch.ones(1, 3)))
    assert torch.equal(rows, before)


def test_an_adapter_without_any_block_adds_nothing() -> None:
    nothing = StackedFactors([None, None])
    rows = torch.ones(2, 3, 4)
    nothing.compute(rows, torch.arange(3), torch.ones(3, 5))
    assert not rows.any() and nothing.nbytes == 0 and nothing.dtype is None

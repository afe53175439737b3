"""Rows that are kept: the same numbers with and without, computed once, never those of other factors."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from backbones import build, inputs, output
from models import adapted, config
from peft_aot import fuse
from peft_aot.aot.stacked import StackedFactors

ROOM = 2**20


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """For how many tokens rows are computed, time after time."""
    numbers: list[int] = []
    original = StackedFactors.compute

    def compute(self: StackedFactors, rows: Tensor, tokens: Tensor, *args: Any) -> None:
        numbers.append(len(tokens))
        original(self, rows, tokens, *args)

    monkeypatch.setattr(StackedFactors, "compute", compute)
    return numbers


def several(name: str = "bert", kind: str = "FEATURE_EXTRACTION", **kwargs: Any) -> nn.Module:
    model = adapted(name, kind, **kwargs)
    torch.manual_seed(8)
    model.add_adapter("kron", config(name, kind, reparam="kron"))
    model.add_adapter("part", config(name, kind, layers_to_transform=[1]))
    return model.eval()


def run(model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        found: Tensor = output(model, *args, **kwargs)
    return found


def uncached(model: nn.Module, *args: Any, **kwargs: Any) -> Tensor:
    plain = copy.deepcopy(model)
    plain.set_table_placement(memory_budget=None)
    return run(plain, *args, **kwargs)


def same(found: Tensor, expected: Tensor) -> None:
    """Equal but for the last bits: a matrix product rounds by how many rows it is computed for."""
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["bert", "t5", "llama"])
def test_the_same_numbers_with_and_without(name: str) -> None:
    kind = "SEQ_2_SEQ_LM" if name == "t5" else "FEATURE_EXTRACTION"
    model = several(name, kind)
    model.set_table_placement(memory_budget=ROOM)
    generator = torch.Generator().manual_seed(0)
    names = ["default", "kron", "part", "__base__"]
    for _ in range(12):
        ids = torch.randint(1, 30, (3, int(torch.randint(1, 7, (), generator=generator))), generator=generator)
        batch = {"input_ids": ids, **({"decoder_input_ids": ids.flip(0)} if name == "t5" else {})}
        chosen = {"adapter_names": [names[int(n)] for n in torch.randint(4, (3,), generator=generator)]}
        same(run(model, batch, **chosen), uncached(model, batch, **chosen))
        same(run(model, batch), uncached(model, batch))
    assert all(stack.cache is not None and stack.cache.hits for stack in model.base_model.lookup.stacks)


def test_a_row_is_computed_once(asked: list[int]) -> None:
    model = several()
    model.set_table_placement(memory_budget=ROOM)
    run(model, {"input_ids": torch.tensor([[3, 4, 3, 5]])})
    assert asked == [3]
    run(model, {"input_ids": torch.tensor([[5, 6, 3, 3], [4, 4, 4, 4]])})
    assert asked == [3, 1], "one new token"
    model.set_table_placement(memory_budget=None)
    run(model, {"input_ids": torch.tensor([[3, 4, 3, 5]])})
    assert asked == [3, 1, 3]


def test_rows_of_other_factors_are_never_used() -> None:
    model = several()
    model.set_table_placement(memory_budget=ROOM)
    batch = inputs("bert", "FEATURE_EXTRACTION")
    run(model, batch)
    factors = [p for n, p in model.named_parameters() if ".aot_rows.default.w2" in n]
    with torch.no_grad():
        factors[0].add_(1.0)
    changed = run(model, batch)
    same(changed, uncached(model, batch))
    model.add_weighted_adapter(["default", "default"], [0.5, 1.5], "sum")
    model.set_adapter("kron")
    run(model, batch, adapter_names=["sum"] * len(batch["input_ids"]))
    for seed in (1, 2, 3):  # an adapter of the same name, maybe at the same place in memory
        model.delete_adapter("sum")
        torch.manual_seed(seed)
        model.add_adapter("sum", config("bert", "FEATURE_EXTRACTION"))
        model.eval()
        names = {"adapter_names": ["sum"] * len(batch["input_ids"])}
        same(run(model, batch, **names), uncached(model, batch, **names))
    with torch.no_grad():
        model.get_input_embeddings().weight[:, 0].add_(1.5)  # a factor would not change its direction
    model.set_adapter("default")
    same(run(model, batch), uncached(model, batch))


def test_autocast_has_rows_of_its_own() -> None:
    model = several()
    model.set_table_placement(memory_budget=ROOM)
    batch = inputs("bert", "FEATURE_EXTRACTION")
    plain = run(model, batch)
    with torch.autocast("cpu", torch.bfloat16):
        same(run(model, batch), uncached(model, batch))
    assert torch.equal(run(model, batch), plain)


def test_dropout_is_not_kept() -> None:
    model = adapted("bert", "FEATURE_EXTRACTION", dropout=0.5)
    model.set_table_placement(memory_budget=ROOM)
    for module in model.base_model.lookup.modules_of("default")[:1]:
        module.train()
    numbers: list[int] = []
    for module in model.base_model.lookup.modules_of("default"):
        module.register_forward_hook(lambda module, args, rows: numbers.append(len(args[0])))
    for _ in range(2):
        run(model, {"input_ids": torch.tensor([[3, 4]])})
    assert numbers == [2] * 4


def test_what_a_table_leaves_out_is_computed_once(tmp_path: Path, asked: list[int]) -> None:
    several().save_pretrained(tmp_path, selected_adapters=["default"])
    fuse(tmp_path, build("bert", "FEATURE_EXTRACTION"), dtype="float32", token_ids=torch.tensor([3, 4]), progress=False)
    model = PeftModel.from_pretrained(build("bert", "FEATURE_EXTRACTION"), tmp_path)
    batch = {"input_ids": torch.tensor([[3, 4, 5, 6]])}
    expected = run(model, batch)
    model.set_table_placement(memory_budget=ROOM)
    asked.clear()
    for _ in range(3):
        same(run(model, batch), expected)
    assert asked == [2]


def test_too_little_room_is_slower_and_said_once() -> None:
    model = several()
    model.set_table_placement(memory_budget=model.base_model.lookup.stacks[0].page_bytes)  # two pages in float32
    batch = {"input_ids": torch.arange(1, 13).view(2, 6)}
    with pytest.warns(UserWarning, match="a row cache that holds the 12 distinct tokens of a batch, got room for 2; "):
        same(run(model, batch), uncached(model, batch))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        same(run(model, batch), uncached(model, batch))


@pytest.mark.parametrize("budget", [0, 511, -1, 1.5, "much", True])
def test_budgets_that_mean_nothing_are_refused(budget: Any) -> None:
    model = several()
    model.set_table_placement(memory_budget=ROOM)
    with pytest.raises(ValueError, match=r"expected a memory_budget in bytes of at least \d+, .* got .*; such as"):
        model.set_table_placement(memory_budget=budget)
    assert model.base_model.lookup.stacks[0].budget == ROOM, "as before"


def test_blocks_that_are_wrapped_later_share_the_budget() -> None:
    model = adapted("t5", "SEQ_2_SEQ_LM", target_modules=r"encoder\.block\.0")
    model.set_table_placement(memory_budget=model.base_model.lookup.stacks[0].page_bytes)
    model.add_adapter("all", config("t5", "SEQ_2_SEQ_LM"))
    model.eval()
    batch, names = inputs("t5", "SEQ_2_SEQ_LM"), {"adapter_names": ["all", "default", "__base__"]}
    same(run(model, batch, **names), uncached(model, batch, **names))
    assert all(stack.cache is None for stack in model.base_model.lookup.stacks), "too little now, and no error"
    with pytest.raises(ValueError, match="expected a memory_budget in bytes of at least"):
        model.set_table_placement(memory_budget=model.base_model.lookup.stacks[0].page_bytes)
    model = adapted("t5", "SEQ_2_SEQ_LM", target_modules=r"encoder\.block\.0")
    model.set_table_placement(memory_budget=ROOM)
    model.add_adapter("all", config("t5", "SEQ_2_SEQ_LM"))
    model.eval()
    for _ in range(2):
        same(run(model, batch, **names), uncached(model, batch, **names))
    stacks = model.base_model.lookup.stacks
    assert len(stacks) == 2 and all(stack.cache is not None and stack.cache.hits for stack in stacks)
    assert sum(stack.budget for stack in stacks) <= ROOM


def test_a_share_of_the_free_memory() -> None:
    model = several()
    model.set_table_placement(memory_budget="auto")
    assert 10**7 < model.base_model.lookup.stacks[0].budget < 10**13


def test_factors_that_were_rounded_and_cast_back_are_laid_out_anew() -> None:
    model = several()
    batch = inputs("bert", "FEATURE_EXTRACTION")
    run(model, batch)
    model.to(torch.bfloat16).to(torch.float32)
    assert torch.equal(run(model, batch), uncached(model, batch))

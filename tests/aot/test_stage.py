"""That rows gathered for all blocks at once are the rows that each block would compute, and what memory they take."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from backbones import build, inputs, output
from models import adapted, config
from peft_aot import fuse
from peft_aot.aot import staged_rows
from peft_aot.aot.lookup import Lookup
from peft_aot.aot.stage import Buffers, Lent
from peft_aot.aot.staged_rows import StagedRows
from peft_aot.ops import add_rows, add_staged, place_distinct

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(5))
def test_adding_staged_rows_is_adding_rows(dtype: torch.dtype, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch, length, width, tasks = (int(torch.randint(1, 6, (), generator=generator)) for _ in range(4))
    ids = torch.randint(0, 9, (batch, length), generator=generator)
    groups = torch.randint(-1, tasks, (batch,), generator=generator).tolist()
    placement = place_distinct(ids, groups, tasks)
    hidden = torch.randn(batch, length, width, generator=generator).to(dtype)
    rows = [torch.randn(len(tokens), width, generator=generator) for tokens in placement.tokens]
    staged = torch.cat([*rows, torch.zeros(1, width)]).to(dtype)
    before = hidden.clone()
    assert torch.equal(add_staged(hidden, staged, placement.positions), add_rows(hidden, rows, placement))
    assert torch.equal(hidden, before)


def each_block_alone(model: nn.Module, monkeypatch: pytest.MonkeyPatch, *args: Any, **kwargs: Any) -> Tensor:
    with monkeypatch.context() as patch:
        patch.setattr(Lookup, "_ready", lambda *_: None)
        found: Tensor = output(model, *args, **kwargs)
    return found


@pytest.mark.parametrize("name", ["bert", "deberta_v2", "t5", "llama", "electra"])
def test_blocks_get_the_rows_they_would_compute(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kind = "SEQ_2_SEQ_LM" if name == "t5" else "FEATURE_EXTRACTION"
    adapted(name, kind, table_dtype="float16").save_pretrained(tmp_path, fuse=True)
    model = PeftModel.from_pretrained(build(name, kind), tmp_path)
    torch.manual_seed(5)
    model.add_adapter("kron", config(name, kind, reparam="kron"))
    model.add_adapter("part", config(name, kind, layers_to_transform=[1]))
    model.eval()
    batch = inputs(name, kind)
    size = len(batch["input_ids"])
    for names in (["kron", "default", "__base__"] * size, ["part", "default"] * size):  # rows that are computed
        mixed = {"adapter_names": names[:size]}
        with torch.no_grad():
            torch.testing.assert_close(
                output(model, batch, **mixed), each_block_alone(model, monkeypatch, batch, **mixed)
            )
    with torch.no_grad():  # rows that are copied
        assert torch.equal(output(model, batch), each_block_alone(model, monkeypatch, batch))
        mixed = {"adapter_names": ["default"] * size}
        assert torch.equal(output(model, batch, **mixed), each_block_alone(model, monkeypatch, batch, **mixed))
    model.base_model.set_adapter(["default", "kron", "part"])  # their rows add up
    with torch.no_grad():
        torch.testing.assert_close(output(model, batch), each_block_alone(model, monkeypatch, batch))


def test_what_partial_tables_lack_goes_to_the_columns_of_its_own_task(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = PeftModel.from_pretrained(build("bert"), _partial(tmp_path / "one", 1), adapter_name="one")
    for seed, name in ((2, "two"), (3, "three")):
        model.load_adapter(_partial(tmp_path / name, seed), name)
    model.eval()
    batch = inputs("bert", "SEQ_CLS")
    order = ["two", "three", "one", "two", "__base__", "three"][: len(batch["input_ids"])]
    for placement in ("mmap", "staged", "factors"):
        model.set_table_placement(placement, None)
        with torch.no_grad():
            found = output(model, batch, adapter_names=order)
            torch.testing.assert_close(found, each_block_alone(model, monkeypatch, batch, adapter_names=order))


def _partial(folder: Path, seed: int) -> Path:
    adapted("bert", seed=seed).save_pretrained(folder)
    fuse(folder, build("bert"), dtype="float32", token_ids=torch.arange(0, 120, seed + 1), progress=False)
    return folder


def test_a_gradient_flows_past_frozen_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("bert").eval().requires_grad_(False)
    weight = model.base_model.model.bert.embeddings.LayerNorm.weight.requires_grad_()
    gradients = []
    for run in (
        output(model, inputs("bert", "SEQ_CLS")),
        each_block_alone(model, monkeypatch, inputs("bert", "SEQ_CLS")),
    ):
        gradients += torch.autograd.grad(run.float().square().sum(), weight)
    torch.testing.assert_close(*gradients)
    assert bool(gradients[0].any())


def test_hidden_states_of_several_dtypes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("llama", "FEATURE_EXTRACTION", table_dtype="float32").eval()
    blocks = model.base_model.model.layers

    def halve(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return (args[0].double(), *args[1:]), kwargs

    def back(module: nn.Module, args: Any, kwargs: Any) -> Any:
        return (args[0].float(), *args[1:]), kwargs

    blocks[1].register_forward_pre_hook(halve, with_kwargs=True)
    blocks[1].base_layer.register_forward_pre_hook(back, with_kwargs=True)
    batch = inputs("llama", "FEATURE_EXTRACTION")
    with torch.no_grad():
        torch.testing.assert_close(output(model, batch), each_block_alone(model, monkeypatch, batch), rtol=0, atol=1e-6)


def test_buffers_are_used_again_and_grow() -> None:
    buffers = Buffers()
    first = buffers.borrow(10, torch.float32, CPU).tensor
    assert first.numel() == 10
    second = buffers.borrow(4, torch.float32, CPU).tensor
    assert second.data_ptr() != first.data_ptr(), "two at one time share nothing"
    buffers.give_back(first)
    assert buffers.borrow(7, torch.float32, CPU).tensor is first
    buffers.give_back(first)
    assert buffers.borrow(7, torch.float16, CPU).tensor.dtype == torch.float16
    assert buffers.borrow(11, torch.float32, CPU).tensor.numel() == 11
    for copied in (copy.deepcopy(buffers), pickle.loads(pickle.dumps(buffers))):
        assert copied.borrow(1, torch.float32, CPU).tensor is not second


def test_a_buffer_made_in_inference_mode_serves_outside() -> None:
    model = adapted("bert").eval()
    with torch.inference_mode():
        expected = output(model, inputs("bert", "SEQ_CLS"))
    with torch.no_grad():
        assert torch.equal(output(model, inputs("bert", "SEQ_CLS")), expected)


def test_calls_give_their_buffer_back_also_when_they_fail() -> None:
    model = adapted("bert").eval()
    free = model.base_model.lookup._buffers._free
    with torch.no_grad():
        output(model, inputs("bert", "SEQ_CLS"))
        assert sum(map(len, free.values())) == 1
        handle = model.base_model.model.bert.encoder.layer[1].register_forward_pre_hook(_fail)
        with pytest.raises(RuntimeError, match="on purpose"):
            output(model, inputs("bert", "SEQ_CLS"))
        handle.remove()
        output(model, inputs("bert", "SEQ_CLS"))
    assert sum(map(len, free.values())) == 1


def in_parts(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many blocks' rows are gathered, time after time."""
    numbers: list[int] = []
    original = StagedRows.gather

    def gather(self: StagedRows, first: int = 0) -> None:
        original(self, first)
        numbers.append(self._blocks.stop - self._blocks.start)

    monkeypatch.setattr(StagedRows, "gather", gather)
    return numbers


@pytest.mark.parametrize("source", ["table", "factors", "kron"])
def test_rows_that_take_too_much_memory_are_gathered_a_few_blocks_at_a_time(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapted("bert", reparam="kron" if source == "kron" else "fc").save_pretrained(tmp_path, fuse=True)
    model = PeftModel.from_pretrained(build("bert"), tmp_path, use_table=source == "table")
    batch = inputs("bert", "SEQ_CLS")
    numbers = in_parts(monkeypatch)
    with torch.no_grad():
        expected = output(model, batch)
        needed = model.base_model.lookup._buffers._free.popitem()[1][0].tensor.nbytes
        for budget, parts in ((needed, [2]), (needed - 1, [1, 1]), (1, [1, 1])):
            monkeypatch.setattr(staged_rows, "STAGE_BYTES", budget)
            numbers.clear()
            torch.testing.assert_close(output(model, batch), expected)
            assert numbers == parts


def test_no_memory_is_said_and_fewer_blocks_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    model = adapted("bert").eval()
    batch = inputs("bert", "SEQ_CLS")
    numbers = in_parts(monkeypatch)
    original, room = Buffers.borrow, [0]

    def borrow(self: Buffers, elements: int, *args: Any) -> Lent:
        if elements > room[0]:
            raise RuntimeError(f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {elements} bytes.")
        return original(self, elements, *args)

    with torch.no_grad():
        expected = output(model, batch)
        room[0] = model.base_model.lookup._buffers._free.popitem()[1][0].tensor.numel() // 2
        numbers.clear()
        monkeypatch.setattr(Buffers, "borrow", borrow)
        with pytest.warns(
            UserWarning, match=r"expected .* of free memory for the rows of a batch, got 'Default.*fewer"
        ):
            torch.testing.assert_close(output(model, batch), expected)
        assert numbers == [1, 1]
        room[0] = 0
        with pytest.raises(RuntimeError, match="can't allocate"), pytest.warns(UserWarning, match="smaller batches"):
            output(model, batch)
        monkeypatch.undo()
        torch.testing.assert_close(output(model, batch), expected)


def _fail(*_: Any) -> None:
    raise RuntimeError("on purpose")

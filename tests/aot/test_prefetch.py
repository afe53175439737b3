"""Rows that were fetched before, and rows copied beside the computation: the same answers, or none.

The streams here do nothing until somebody waits for it, as late as a GPU may: a block that does not wait for its rows,
or memory that is used again too early, gives wrong answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from backbones import build, inputs, output
from models import adapted, config
from peft_aot import TaskBank, fuse
from peft_aot.aot.lookup import Lookup
from peft_aot.aot.placement import Placement
from peft_aot.aot.stage import Buffers
from peft_aot.aot.transfer import BLOCKS_AT_ONCE, CudaStreams, Transfer

BATCH = inputs("bert", "SEQ_CLS", batch=4)
CPU = torch.device("cpu")


class Late:
    """An event of `LazyStreams`."""

    def __init__(self, streams: LazyStreams, number: int) -> None:
        self.streams, self.number = streams, number

    def query(self) -> bool:
        return self.number <= self.streams.done

    def synchronize(self) -> None:
        self.streams.run(self.number)


class LazyStreams:
    """Copies that are made when they are waited for, and not before."""

    def __init__(self) -> None:
        self.queue: list[tuple[Tensor, Tensor, Late | None]] = []
        self.done = 0
        self.waits: list[int] = []

    def copy(self, target: Tensor, source: Tensor, after: Late | None) -> Late:
        self.queue.append((target, source, after))
        return Late(self, len(self.queue))

    def wait(self, event: Late) -> None:
        self.waits.append(event.number)
        self.run(event.number)

    def computed(self) -> Late:
        return Late(self, 0)  # computation on the CPU is done when its call returns

    def run(self, number: int) -> None:
        while self.done < number:
            target, source, after = self.queue[self.done]
            assert after is None or after.query(), "written to before it may be"
            target.copy_(source)
            self.done += 1


@pytest.fixture
def streams(monkeypatch: pytest.MonkeyPatch) -> LazyStreams:
    """Staged copies, on the CPU."""
    lazy = LazyStreams()
    monkeypatch.setattr(Lookup, "_streams_for", lambda self, device: lazy)
    monkeypatch.setattr(Placement, "stages", lambda self, device: self.name == "staged")
    return lazy


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, Path]:
    for seed, name in enumerate(("one", "two", "plain")):
        adapted("bert", seed=seed, num_labels=2 + seed).save_pretrained(tmp_path / name, fuse=name != "plain")
    adapted("bert", seed=7).save_pretrained(tmp_path / "part")
    fuse(tmp_path / "part", build("bert"), token_ids=torch.arange(60), progress=False)
    return {name: tmp_path / name for name in ("one", "two", "plain", "part")}


def loaded(saved: dict[str, Path], placement: str = "staged") -> PeftModel:
    model = PeftModel.from_pretrained(build("bert"), saved["one"], adapter_name="one", table_placement=placement)
    for name in list(saved)[1:]:
        model.load_adapter(str(saved[name]), adapter_name=name)
    return model.eval()


def run(model: nn.Module, names: list[str] | None, batch: dict[str, Tensor] = BATCH, **kwargs: Any) -> Tensor:
    with torch.no_grad():
        return output(model, batch, **({} if names is None else {"adapter_names": names}), **kwargs)


MIXES: list[list[str]] = [
    ["one"] * 4,
    ["one", "two", "one", "two"],
    ["one", "plain", "two", "plain"],
    ["one", "__base__", "two", "part"],
    ["plain"] * 4,
    ["part", "__base__", "plain", "one"],
]


@pytest.mark.parametrize("names", MIXES)
def test_copied_rows_are_the_rows(names: list[str], saved: dict[str, Path], streams: LazyStreams) -> None:
    model, expected = loaded(saved), run(loaded(saved, "mmap"), names)
    for _ in range(3):
        assert torch.equal(run(model, names), expected)
    tables = any(name in ("one", "two", "part") for name in names)
    assert bool(streams.queue) == tables and streams.done == len(streams.queue)


def test_batches_of_all_kinds_one_after_the_other(saved: dict[str, Path], streams: LazyStreams) -> None:
    model, mapped = loaded(saved), loaded(saved, "mmap")
    generator = torch.Generator().manual_seed(0)
    for step in range(12):
        length = int(torch.randint(1, 9, (), generator=generator))
        batch = {"input_ids": torch.randint(5, 119, (4, length), generator=generator)}
        names = MIXES[step % len(MIXES)]
        assert torch.equal(run(model, names, batch), run(mapped, names, batch))


@pytest.mark.parametrize("placement", ["mmap", "staged", "ram", "factors"])
def test_prefetched_batches_in_turn(placement: str, saved: dict[str, Path], streams: LazyStreams) -> None:
    model, expected_model = loaded(saved, placement), loaded(saved, "factors" if placement == "factors" else "mmap")
    batches = [
        {"input_ids": torch.randint(5, 119, (4, 6), generator=torch.Generator().manual_seed(s))} for s in range(6)
    ]
    expected = [run(expected_model, names, batch) for names, batch in zip(MIXES, batches, strict=True)]
    handle = model.prefetch(batches[0]["input_ids"], MIXES[0])
    for step, (names, batch) in enumerate(zip(MIXES, batches, strict=True)):
        following = None
        if step + 1 < len(batches):
            following = model.prefetch(batches[step + 1]["input_ids"], MIXES[step + 1])
        assert torch.equal(run(model, names, batch, prefetched=handle), expected[step])
        handle = following
    unmixed = model.prefetch(BATCH["input_ids"])
    assert torch.equal(run(model, None, prefetched=unmixed), run(expected_model, None))


def test_the_rows_of_a_handle_are_not_gathered_again(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model = loaded(saved, "mmap")
    handle = model.prefetch(BATCH["input_ids"], ["one"] * 4)
    expected = run(model, ["one"] * 4)
    monkeypatch.setattr(Lookup, "_gathered", None)
    assert torch.equal(run(model, ["one"] * 4, prefetched=handle), expected)


def test_a_batch_that_runs_without_its_handle_changes_nothing(saved: dict[str, Path], streams: LazyStreams) -> None:
    model, mapped = loaded(saved), loaded(saved, "mmap")
    other = BATCH["input_ids"].flip(0)
    handle = model.prefetch(other, ["two"] * 4)
    assert torch.equal(run(model, ["one"] * 4), run(mapped, ["one"] * 4))
    assert torch.equal(
        run(model, ["two"] * 4, {"input_ids": other}, prefetched=handle), run(mapped, ["two"] * 4, {"input_ids": other})
    )


def test_what_was_not_prefetched_is_refused(saved: dict[str, Path]) -> None:
    model = loaded(saved, "mmap")
    handle = model.prefetch(BATCH["input_ids"], ["one"] * 4)
    with pytest.raises(ValueError, match="expected the adapter_names that were prefetched"):
        run(model, ["two"] * 4, prefetched=handle)
    with pytest.raises(ValueError, match="expected the input_ids that were prefetched, of shape"):
        run(model, ["one"] * 4, {"input_ids": BATCH["input_ids"].flip(0)}, prefetched=handle)
    expected = run(model, ["one"] * 4, prefetched=handle)
    with pytest.raises(ValueError, match="expected a handle that was not used"):
        run(model, ["one"] * 4, prefetched=handle)
    with pytest.raises(ValueError, match="got unknown 'on'"):
        model.prefetch(BATCH["input_ids"], ["on"] * 4)
    with pytest.raises(ValueError, match="as many adapter_names as examples"):
        model.prefetch(BATCH["input_ids"], ["one"] * 3)
    assert torch.equal(run(model, ["one"] * 4), expected)


def test_a_batch_begins_when_it_is_prefetched(saved: dict[str, Path]) -> None:
    model = loaded(saved, "mmap")
    bank = TaskBank(model)
    bank.add("task", saved["two"])
    expected = run(model, ["task"] * 4)
    handle = model.prefetch(BATCH["input_ids"], ["task"] * 4)
    bank.remove("task")
    assert torch.equal(run(model, ["task"] * 4, prefetched=handle), expected)


def test_rows_that_are_out_of_date_are_gathered_anew(saved: dict[str, Path]) -> None:
    model = loaded(saved, "factors")
    handle = model.prefetch(BATCH["input_ids"], ["one"] * 4)
    with torch.no_grad():
        model.base_model.lookup.modules_of("one")[0].b2.add_(1.0)
    expected = run(model, ["one"] * 4)
    assert torch.equal(run(model, ["one"] * 4, prefetched=handle), expected)
    handle = model.prefetch(BATCH["input_ids"], ["one"] * 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(run(model, ["one"] * 4, prefetched=handle), run(model, ["one"] * 4))


@pytest.mark.parametrize("blocks", [1, 2, 5, 6, 24])
def test_groups_of_blocks_wait_for_their_own(blocks: int) -> None:
    streams = LazyStreams()
    source, target = torch.randn(blocks, 3, 2), torch.full((blocks, 3, 2), float("nan"))
    transfer = Transfer(streams, source, target, None)
    assert len(streams.queue) == 1 + -(-(blocks - 1) // BLOCKS_AT_ONCE) and not streams.done
    for block in range(blocks):
        transfer.wait(block)
        assert torch.equal(target[block], source[block])
        assert streams.done == 1 + -(-block // BLOCKS_AT_ONCE), "and no more than its own"
    assert len(streams.waits) == len(streams.queue)


def test_a_buffer_in_use_is_not_written_to_while_another_may_be_made() -> None:
    buffers, streams = Buffers(), LazyStreams()
    first = buffers.borrow(8, torch.float32, CPU).tensor
    late = streams.copy(first, torch.ones(8), None)
    buffers.give_back(first, late)
    second = buffers.borrow(8, torch.float32, CPU)
    assert second.tensor is not first and second.after is None, "another one, while the first is being used"
    buffers.give_back(second.tensor, late)
    again = buffers.borrow(8, torch.float32, CPU)
    assert again.tensor is first and again.after is late, "two are enough: what it waits for is told"
    streams.run(1)
    assert buffers.borrow(4, torch.float32, CPU).tensor is second.tensor


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("placement", ["auto", "device", "staged", "mmap", "factors"])
def test_on_a_gpu(placement: str, saved: dict[str, Path]) -> None:
    expected_model = loaded(saved, "mmap")
    model = loaded(saved, "mmap").cuda()
    model.set_table_placement(placement)
    handle = None
    for names in MIXES * 3:
        batch = {name: value.cuda() for name, value in BATCH.items()}
        found = run(model, names, batch, prefetched=handle)
        torch.testing.assert_close(found.cpu(), run(expected_model, names), rtol=2e-3, atol=2e-3)
        handle = None if handle is not None else model.prefetch(batch["input_ids"], MIXES[(MIXES.index(names) + 1) % 6])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_cuda_streams_copy_and_wait() -> None:
    device = torch.device("cuda")
    streams = CudaStreams(device)
    source = torch.randn(7, 1000, 64).pin_memory()
    target = torch.full((7, 1000, 64), float("nan"), device=device)
    transfer = Transfer(streams, source, target, streams.computed())
    sums = []
    for block in range(7):
        transfer.wait(block)
        sums.append(target[block].sum())
    assert torch.equal(torch.stack(sums).cpu(), torch.stack([target[b].sum() for b in range(7)]).cpu())
    assert torch.equal(target.cpu(), source)


def test_a_buffer_of_ids_that_is_used_again(saved: dict[str, Path]) -> None:
    model = loaded(saved, "mmap")
    buffer, names = BATCH["input_ids"].clone(), ["one"] * 4
    handle = model.prefetch(buffer, names)
    buffer.copy_(BATCH["input_ids"].flip(0))
    with pytest.raises(ValueError, match="expected the input_ids that were prefetched"):
        run(model, names, {"input_ids": buffer}, prefetched=handle)
    buffer.copy_(BATCH["input_ids"])
    expected = run(model, names, {"input_ids": buffer})
    assert torch.equal(run(model, names, {"input_ids": buffer}, prefetched=handle), expected)


def test_while_an_adapter_of_some_blocks_is_active(saved: dict[str, Path], tmp_path: Path) -> None:
    adapted("bert", seed=5, layers_to_transform=[0]).save_pretrained(tmp_path / "first")
    model = loaded(saved, "mmap")
    model.load_adapter(str(tmp_path / "first"), adapter_name="first")
    expected = run(model, ["one"] * 4)
    model.set_adapter("first")
    handle = model.prefetch(BATCH["input_ids"], ["one"] * 4)
    assert torch.equal(run(model, ["one"] * 4, prefetched=handle), expected)
    unmixed = model.prefetch(BATCH["input_ids"])
    assert torch.equal(run(model, None, prefetched=unmixed), run(model, None))


def test_another_adapter_became_active_since(saved: dict[str, Path]) -> None:
    model = loaded(saved, "mmap")
    handle = model.prefetch(BATCH["input_ids"])
    model.set_adapter("two")
    expected = run(model, None)
    assert torch.equal(run(model, None, prefetched=handle), expected)


@pytest.mark.parametrize("ids", [[[5, 6]], torch.tensor([5, 6]), torch.tensor([[0.5]])])
def test_what_is_no_batch_of_ids_is_refused(ids: Any, saved: dict[str, Path]) -> None:
    with pytest.raises(ValueError, match=r"expected token ids as an integer tensor of shape \(B, T\), got"):
        loaded(saved, "mmap").prefetch(ids)


def test_several_active_adapters_of_different_blocks() -> None:
    model = adapted("bert", "FEATURE_EXTRACTION")
    torch.manual_seed(9)
    model.add_adapter("first", config("bert", "FEATURE_EXTRACTION", layers_to_transform=[0]))
    model.eval().base_model.set_adapter(["default", "first"], inference_mode=True)
    expected = run(model, None)
    assert torch.equal(run(model, None, prefetched=model.prefetch(BATCH["input_ids"])), expected)

"""Tables in memory: the answers of mapped ones, under a budget, with nothing moved under a running batch."""

from __future__ import annotations

import copy
import gc
import random
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from backbones import build, inputs, output
from models import adapted
from peft_aot import TaskBank, fuse, token_ids
from peft_aot.aot.arena import Arena, Residents
from peft_aot.aot.placement import NAMES, Placement, choose_placement
from peft_aot.ops import add_quantized
from threads import ask_while_changing

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
BATCH = inputs("bert", "SEQ_CLS", batch=4)
TABLE = 120 * 2 * 32 * 4
"""Bytes of a tiny BERT's table in float32."""


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, Path]:
    folders = {}
    for seed, (name, fields) in enumerate(
        {"one": {}, "two": {"num_labels": 3}, "kron": {"reparam": "kron"}, "part": {"layers_to_transform": [1]}}.items()
    ):
        adapted("bert", seed=seed, **fields).save_pretrained(tmp_path / name, fuse=True)
        folders[name] = tmp_path / name
    return folders


def loaded(saved: dict[str, Path], dtype: torch.dtype = torch.float32, **options: Any) -> PeftModel:
    model: PeftModel | None = None
    for name, folder in saved.items():
        if model is None:
            model = PeftModel.from_pretrained(build("bert").to(dtype), folder, adapter_name=name, **options)
        else:
            model.load_adapter(str(folder), adapter_name=name, **options)
    assert model is not None
    return model.eval()


def run(model: nn.Module, names: list[str], batch: dict[str, Tensor] = BATCH) -> Tensor:
    with torch.no_grad():
        return output(model, batch, adapter_names=names)


@pytest.mark.parametrize("placement", ["ram", "device"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_answers_are_those_of_mapped_tables(placement: str, dtype: torch.dtype, saved: dict[str, Path]) -> None:
    mapped, resident = loaded(saved, dtype), loaded(saved, dtype, table_placement=placement)
    for names in (["one"] * 4, ["one", "two", "kron", "part"], ["part", "__base__", "two", "__base__"]):
        assert torch.equal(run(resident, names), run(mapped, names))
    with torch.no_grad():
        assert torch.equal(output(resident, BATCH), output(mapped, BATCH))
    arenas = list(resident.base_model.lookup._residents._arenas.values())
    assert len(arenas) == 1 and arenas[0].rows.shape[1] >= 4 * 120 + 1 and arenas[0].rows.dtype == dtype
    assert not resident.base_model.lookup._buffers._free, "nothing was gathered"


def test_each_way_to_the_same_rows(saved: dict[str, Path]) -> None:
    model = loaded(saved)
    names = ["one", "two", "kron", "part"]
    expected = run(model, names)
    for placement in NAMES:
        model.set_table_placement(placement)
        torch.testing.assert_close(run(model, names), expected, rtol=2e-3, atol=2e-3)
    model.set_table_placement("factors")
    exact = loaded(saved, use_table=False)
    assert torch.equal(run(model, names), run(exact, names)) and not torch.equal(run(model, names), expected)


def test_int8_rows_stay_int8(saved: dict[str, Path]) -> None:
    for folder in saved.values():
        fuse(folder, build("bert"), dtype="int8", progress=False)
    mapped, resident = loaded(saved), loaded(saved, table_placement="ram")
    names = ["one", "part", "__base__", "two"]
    torch.testing.assert_close(run(resident, names), run(mapped, names), rtol=1e-5, atol=1e-5)
    (arena,) = resident.base_model.lookup._residents._arenas.values()
    assert arena.rows.dtype == torch.int8 and arena.nbytes == arena.rows.nbytes + arena.scales.nbytes


@pytest.mark.parametrize("seed", range(5))
def test_adding_quantized_rows(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch, length, width, rows = (int(torch.randint(1, 7, (), generator=generator)) for _ in range(4))
    hidden = torch.randn(batch, length, width, generator=generator)
    stored = torch.randint(-127, 128, (rows, width), generator=generator, dtype=torch.int8)
    scales = torch.rand(rows, 1, generator=generator).half()
    positions = torch.randint(0, rows, (batch, length), generator=generator)
    expected = hidden.clone()
    for b in range(batch):
        for t in range(length):
            row = int(positions[b, t])
            expected[b, t] += stored[row].float() * scales[row].float()
    torch.testing.assert_close(add_quantized(hidden, stored, scales, positions), expected)


def test_formats_that_differ_and_tables_in_part_share_a_batch(saved: dict[str, Path]) -> None:
    fuse(saved["two"], build("bert"), dtype="int8", progress=False)
    fuse(saved["kron"], build("bert"), dtype="float32", token_ids=torch.arange(40), progress=False)
    mapped, resident = loaded(saved), loaded(saved, table_placement="ram")
    for names in (["one", "two", "one", "two"], ["one", "kron", "one", "kron"], ["two"] * 4):
        torch.testing.assert_close(run(resident, names), run(mapped, names), rtol=1e-5, atol=1e-5)


def test_a_budget_is_kept_and_what_finds_no_room_is_served(saved: dict[str, Path]) -> None:
    mapped = loaded(saved)
    resident = loaded(saved, table_placement="ram", memory_budget=2 * TABLE + 2 * 32 * 4)
    for names in (["one"] * 4, ["two"] * 4, ["kron"] * 4, ["one", "kron", "two", "part"], ["one", "two"] * 2):
        assert torch.equal(run(resident, names), run(mapped, names))
        assert resident.base_model.lookup._residents.nbytes <= 2 * TABLE + 2 * 32 * 4
    (arena,) = resident.base_model.lookup._residents._arenas.values()
    assert arena.rows.shape[1] == 2 * 120 + 1


def test_the_place_of_a_task_that_is_gone_is_used_again(saved: dict[str, Path]) -> None:
    model = loaded({"one": saved["one"]}, table_placement="ram")
    bank = TaskBank(model)
    sizes = set()
    for name in ("two", "kron", "part", "two"):
        bank.add("task", saved[name])
        torch.testing.assert_close(run(model, ["one", "task"] * 2), run(loaded(saved), ["one", name] * 2))
        bank.remove("task")
        gc.collect()
        sizes.add(model.base_model.lookup._residents.nbytes)
    assert len(sizes) == 1


def test_a_batch_keeps_its_rows_while_its_task_is_replaced(saved: dict[str, Path]) -> None:
    model = loaded({"one": saved["one"]}, table_placement="ram", memory_budget=2 * TABLE + 2 * 32 * 4)
    bank = TaskBank(model)
    bank.add("task", saved["two"])
    expected = run(model, ["task"] * 4)

    def change(*_: object) -> None:
        handle.remove()
        bank.replace("task", saved["kron"])
        gc.collect()
        run(model, ["task"] * 4)  # finds no room while the first batch reads its rows

    handle = model.base_model.model.bert.encoder.layer[0].base_layer.register_forward_pre_hook(change)
    assert torch.equal(run(model, ["task"] * 4), expected)


def test_a_batch_keeps_its_rows_while_its_adapter_loses_its_table(saved: dict[str, Path]) -> None:
    model = loaded({"one": saved["one"]}, table_placement="ram", memory_budget=TABLE + 2 * 32 * 4)
    bank = TaskBank(model)
    bank.add("task", saved["two"])
    expected = run(model, ["one"] * 4)

    def change(*_: object) -> None:
        handle.remove()
        model.base_model.lookup.detach("one")
        gc.collect()
        run(model, ["task"] * 4)  # takes the place, if it is free

    handle = model.base_model.model.bert.encoder.layer[0].base_layer.register_forward_pre_hook(change)
    assert torch.equal(run(model, ["one"] * 4), expected)


def test_ids_that_the_table_has_no_row_for_are_refused(saved: dict[str, Path]) -> None:
    model = loaded({"one": saved["one"]}, table_placement="ram")
    model.base_model.model.resize_token_embeddings(130)
    with pytest.raises(IndexError, match=r"expected token ids in \[0, 120\), the vocabulary of the table, got"):
        run(model, ["one"] * 4, {"input_ids": torch.full((4, 2), 125)})


def test_changed_factors_are_used(saved: dict[str, Path]) -> None:
    model = loaded({"one": saved["one"]}, table_placement="ram")
    before = run(model, ["one"] * 4)
    with torch.no_grad():
        model.base_model.lookup.modules_of("one")[0].b2.add_(1.0)
    with pytest.warns(UserWarning, match="have changed since its fused table was loaded"):
        changed = run(model, ["one"] * 4)
    assert not torch.allclose(changed, before)


def test_a_copied_model_has_tables_of_its_own(saved: dict[str, Path]) -> None:
    model = loaded(saved, table_placement="ram")
    names = ["one", "two", "kron", "part"]
    expected = run(model, names)
    copied = copy.deepcopy(model)
    assert torch.equal(run(copied, names), expected)
    mine, other = (m.base_model.lookup._residents for m in (model, copied))
    assert mine is not other and mine.budget == other.budget


def test_a_table_that_is_written_to_before_it_is_copied(saved: dict[str, Path]) -> None:
    model = loaded({"one": saved["one"]}, table_placement="ram")
    exact = loaded({"one": saved["one"]}, use_table=False)
    with (saved["one"] / "aot_table.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.warns(UserWarning, match="got it written to in place since"):
        assert torch.equal(run(model, ["one"] * 4), run(exact, ["one"] * 4))


@pytest.mark.parametrize(
    ("name", "budget", "device", "message"),
    [
        ("rma", None, CPU, "expected a known table_placement, got 'rma'; did you mean 'ram'"),
        ("ram", None, CUDA, "expected table_placement 'ram' for a model on the CPU, got one on cuda; choose 'device'"),
        ("mmap", 10, CPU, "expected a memory_budget in bytes of at least 100"),
        ("mmap", "lots", CPU, "got 'lots'; such as 268435456, or 'auto'"),
    ],
)
def test_choices_that_mean_nothing(name: str, budget: Any, device: torch.device, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        choose_placement(name, budget, 100, device)


def test_what_a_choice_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("peft_aot.aot.placement.free_memory", lambda device: 4000 if device == CPU else 8000)
    assert choose_placement("auto", None, 100, CPU) == Placement("auto", None)
    assert choose_placement("auto", "auto", 100, CPU) == Placement("auto", 1000)
    assert choose_placement("auto", None, 100, CUDA) == Placement("auto", None)
    assert choose_placement("device", "auto", 100, CUDA) == Placement("device", 2000)
    assert choose_placement("staged", "auto", 100, CUDA) == Placement("staged", 1000)
    assert choose_placement("ram", "auto", 100, CPU) == Placement("ram", 1000)
    kept = {(name, device.type) for name in NAMES for device in (CPU, CUDA) if Placement(name).keeps_tables(device)}
    assert kept == {("ram", "cpu"), ("device", "cpu"), ("device", "cuda"), ("auto", "cuda")}
    staged = {(name, device.type) for name in NAMES for device in (CPU, CUDA) if Placement(name).stages(device)}
    assert staged == {("auto", "cuda"), ("device", "cuda"), ("staged", "cuda")}


def test_what_is_not_chosen_stays(saved: dict[str, Path]) -> None:
    model = loaded(saved, table_placement="ram")
    model.load_adapter(saved["two"], "again", memory_budget=10**8)
    assert model.base_model.lookup.placement == Placement("ram", 10**8)
    model.set_table_placement("mmap")
    assert model.base_model.lookup.placement == Placement("mmap", 10**8)
    model.set_table_placement(memory_budget=None)
    assert model.base_model.lookup.placement == Placement("mmap", None)
    model.set_table_placement()
    assert model.base_model.lookup.placement == Placement("mmap", None)


def test_random_tables_come_and_go(saved: dict[str, Path]) -> None:
    """Against a dict: whatever is copied in and dropped, each place holds its own table's rows, and none overlap."""
    model = loaded(saved)
    lookup = model.base_model.lookup
    layers, rng = lookup.stacks[0], random.Random(0)
    arena = Arena(layers, torch.float32, CPU)
    limit = (3 * 120 + 1) * 2 * 32 * 4
    held: dict[str, Any] = {}
    for _ in range(200):
        name = rng.choice(list(saved))
        if name in held:
            del held[name]
        else:
            place = arena.copy_in(lookup.tables[name], limit)
            assert (place is None) == (len(held) == 3)
            if place is not None:
                held[name] = place
        assert arena.nbytes <= limit and not arena.rows[:, 0].any()
        for other, place in held.items():
            table = lookup.tables[other]
            found = arena.rows[:, place.start : place.start + 120]
            for slot, block in enumerate(layers.blocks):
                at = table.layer_slot(block)
                rows = torch.zeros(120, 32) if at is None else table.rows(torch.arange(120))[:, at].float()
                assert torch.equal(found[slot], rows)


def test_threads_and_tasks_that_come_and_go(saved: dict[str, Path]) -> None:
    model = loaded({"one": saved["one"]}, table_placement="ram", memory_budget=3 * TABLE + 2 * 32 * 4)
    bank = TaskBank(model)
    for name in ("two", "kron", "part"):
        bank.add(f"t-{name}", saved[name])
    reference = loaded(saved)
    expected = {name: run(reference, [name] * 4) for name in saved}
    changes = random.Random(1)

    def change() -> None:
        name = changes.choice(["two", "kron", "part"])
        if f"t-{name}" in bank:
            bank.remove(f"t-{name}")
        else:
            bank.add(f"t-{name}", saved[name])
        time.sleep(0.003)

    def ask(seed: int) -> int:
        rng, answered = random.Random(seed), 0
        for _ in range(60):
            names = [rng.choice(["one", *bank.tasks]) for _ in range(4)]
            try:
                found = run(model, names)
            except ValueError as error:
                assert "got unknown 't-" in str(error)
                continue
            answered += 1
            for row, name in enumerate(names):
                right = expected[name.removeprefix("t-")][row]
                torch.testing.assert_close(found[row, : len(right)], right, rtol=1e-4, atol=1e-4)
        return answered

    assert ask_while_changing(ask, change) > 100


def test_no_memory_for_a_table_is_no_error(saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    model, expected = loaded({"one": saved["one"]}, table_placement="ram"), run(loaded(saved), ["one"] * 4)

    def grow(*_: object) -> None:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    monkeypatch.setattr(Arena, "_grow", grow)
    with pytest.warns(UserWarning, match="expected memory for a table of .*, got 'Default.*; it is read from its file"):
        assert torch.equal(run(model, ["one"] * 4), expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run(model, ["one"] * 4), expected)


def test_residents_without_room_hold_nothing(saved: dict[str, Path]) -> None:
    lookup = loaded(saved).base_model.lookup
    residents = Residents(100)
    for table in lookup.tables.values():
        assert residents.place(table, lookup.stacks[0], torch.float32, CPU) is None


def test_a_budget_of_so_many_tables_holds_so_many(saved: dict[str, Path]) -> None:
    lookup = loaded(saved).base_model.lookup
    for count in range(1, 13):
        arena, limit = Arena(lookup.stacks[0], torch.float32, CPU), (count * 120 + 1) * 2 * 32 * 4
        held = [arena.copy_in(lookup.tables["one"], limit) for _ in range(count + 1)]
        assert [place is None for place in held] == [False] * count + [True]


def test_no_budget_is_a_share_of_what_is_free_when_the_first_table_comes(
    saved: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Placement, "keeps_tables", lambda self, device: True)  # as on an accelerator
    monkeypatch.setattr("peft_aot.aot.arena.free_memory", lambda device: 4 * (2 * TABLE + 300))
    model = loaded(saved)
    run(model, ["one"] * 4)
    residents = model.base_model.lookup._residents
    assert residents.budget == 2 * TABLE + 300 and residents.nbytes > TABLE


def test_blocks_that_are_wrapped_later(saved: dict[str, Path], tmp_path: Path) -> None:
    adapted("bert", seed=8, layers_to_transform=[0]).save_pretrained(tmp_path / "first", fuse=True)
    order = {"first": tmp_path / "first", "one": saved["one"], "part": saved["part"]}
    names = ["first", "one", "part", "task"]

    def served(placement: str, in_turn: bool) -> Tensor:
        model = loaded({"first": order["first"]}, table_placement=placement)
        TaskBank(model).add("task", order["first"])
        if in_turn:
            run(model, ["first", "task"] * 2)
        for name in ("one", "part"):
            model.load_adapter(str(order[name]), adapter_name=name)
        model.set_adapter("one")
        return run(model.eval(), names)

    expected = run(loaded({**order, "task": order["first"]}), names)
    for placement in ("mmap", "ram"):
        for in_turn in (True, False):
            assert torch.equal(served(placement, in_turn), expected)
    exact = run(loaded({**order, "task": order["first"]}, use_table=False), names)
    torch.testing.assert_close(served("factors", True), exact, rtol=1e-5, atol=1e-5)


def test_another_format_takes_the_place_of_the_one_before(saved: dict[str, Path]) -> None:
    model = loaded({"one": saved["one"]}, table_placement="ram", memory_budget=TABLE * 5 // 4)
    run(model, ["one"] * 4)
    model.to(torch.bfloat16)
    expected = run(loaded({"one": saved["one"]}, torch.bfloat16), ["one"] * 4)
    assert torch.equal(run(model, ["one"] * 4), expected)
    (arena,) = model.base_model.lookup._residents._arenas.values()
    assert arena.rows.dtype == torch.bfloat16


@pytest.mark.parametrize("placement", ["mmap", "ram", "factors"])
@pytest.mark.parametrize("wrong", [-1, 120])
def test_stated_ids_outside_the_vocabulary_are_refused(placement: str, wrong: int, saved: dict[str, Path]) -> None:
    model = loaded(saved, table_placement=placement)
    embeddings = torch.randn(4, 3, 32)
    for names in (["one"] * 4, ["one", "two", "one", "two"]):
        for ids in (torch.tensor([[5, 6, wrong]] * 4), torch.tensor([[wrong, 6, 7]] * 4)):
            with pytest.raises(IndexError, match=r"expected token ids in \[0, 120\)"), token_ids(ids):
                run(model, names, {"inputs_embeds": embeddings})

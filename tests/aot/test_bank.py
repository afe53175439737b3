"""Tasks as data: the answers of adapters, whatever else is in the batch, added and taken away while batches run."""

from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import Tensor, nn

from backbones import build, inputs, output
from models import adapted
from peft_aot import AoTConfig, TaskBank
from threads import ask_while_changing

BATCH = inputs("bert", "SEQ_CLS", batch=6)


def save(folder: Path, name: str = "bert", kind: str = "SEQ_CLS", **fields: Any) -> Path:
    adapted(name, kind, **fields).save_pretrained(folder)
    return folder


def run(model: nn.Module, batch: dict[str, Tensor], names: list[str]) -> Tensor:
    with torch.no_grad():
        return output(model, batch, adapter_names=names)


@pytest.fixture
def saved(tmp_path: Path) -> dict[str, Path]:
    """Adapters of several kinds, with heads of several sizes."""
    return {
        "fc": save(tmp_path / "fc", seed=1),
        "wide": save(tmp_path / "wide", seed=2, num_labels=5, r=3),
        "kron": save(tmp_path / "kron", seed=3, reparam="kron"),
        "part": save(tmp_path / "part", seed=4, layers_to_transform=[1]),
        "fused": save(tmp_path / "fused", seed=5, fuse_on_save=True),
    }


def plain(saved: dict[str, Path]) -> PeftModel:
    """The same adapters, loaded as PEFT loads them."""
    model: PeftModel | None = None
    for name, folder in saved.items():
        if model is None:
            model = PeftModel.from_pretrained(build("bert"), folder, adapter_name=name)
        else:
            model.load_adapter(str(folder), adapter_name=name)
    assert model is not None
    return model.eval()


def banked(saved: dict[str, Path]) -> tuple[PeftModel, TaskBank]:
    model = PeftModel.from_pretrained(build("bert"), saved["fc"], adapter_name="first").eval()
    bank = TaskBank(model)
    for name, folder in saved.items():
        bank.add(name, folder)
    return model, bank


def test_answers_are_those_of_adapters(saved: dict[str, Path]) -> None:
    expected_model, (model, bank) = plain(saved), banked(saved)
    assert list(bank) == list(saved) and len(bank) == 5 and "kron" in bank and bank.nbytes > 0
    for names in (list(saved)[:3] * 2, ["fused", "part", "__base__"] * 2, ["fc"] * 6, ["wide", "__base__", *saved][:6]):
        torch.testing.assert_close(run(model, BATCH, names), run(expected_model, BATCH, names), rtol=1e-5, atol=1e-5)
    mixed = run(model, BATCH, ["first", "fc", "first", "fc", "wide", "wide"])
    one = run(expected_model, BATCH, ["fc"] * 4 + ["wide"] * 2)
    torch.testing.assert_close(mixed, one, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "kind"), [("t5", "SEQ_2_SEQ_LM"), ("llama", "CAUSAL_LM"), ("bert", "TOKEN_CLS")])
def test_other_models(name: str, kind: str, tmp_path: Path) -> None:
    folders = [save(tmp_path / str(seed), name, kind, seed=seed) for seed in (1, 2)]
    reference = PeftModel.from_pretrained(build(name, kind), folders[0], adapter_name="a").eval()
    reference.load_adapter(str(folders[1]), adapter_name="b")
    model = PeftModel.from_pretrained(build(name, kind), folders[0], adapter_name="first").eval()
    bank = TaskBank(model)
    bank.add("a", folders[0])
    bank.add("b", folders[1])
    batch, names = inputs(name, kind), ["a", "b", "__base__"]
    torch.testing.assert_close(run(model, batch, names), run(reference, batch, names), rtol=1e-5, atol=1e-5)


def test_rows_that_are_kept_are_the_tasks_own(saved: dict[str, Path]) -> None:
    model, bank = banked(saved)
    names = [*saved, "first"]
    expected = run(model, BATCH, names)
    model.set_table_placement(memory_budget=2**16)
    for _ in range(3):
        torch.testing.assert_close(run(model, BATCH, names), expected, rtol=1e-5, atol=1e-5)
    bank.replace("fc", saved["kron"])
    assert not torch.allclose(run(model, BATCH, names)[0], expected[0])
    bank.replace("fc", saved["fc"])
    torch.testing.assert_close(run(model, BATCH, names), expected, rtol=1e-5, atol=1e-5)


def test_removing_and_replacing(saved: dict[str, Path]) -> None:
    model, bank = banked(saved)
    before = bank.tasks
    bank.remove("kron")
    assert "kron" in before and "kron" not in bank.tasks
    with pytest.raises(ValueError, match="expected the names of loaded adapters, got unknown 'kron'"):
        run(model, BATCH, ["kron"] * 6)
    for change in (bank.remove, lambda name: bank.replace(name, saved["fc"])):
        with pytest.raises(ValueError, match="expected the name of a task in the bank, got 'krom'; "):
            change("krom")


def test_a_batch_ends_with_the_tasks_it_began_with(saved: dict[str, Path]) -> None:
    model, bank = banked(saved)
    names = ["kron", "wide"] * 3
    expected = run(model, BATCH, names)
    block = model.base_model.model.bert.encoder.layer[0].base_layer

    def change(*_: object) -> None:
        handle.remove()
        bank.remove("kron")
        bank.replace("wide", saved["fc"])

    handle = block.register_forward_pre_hook(change)
    assert torch.equal(run(model, BATCH, names), expected)
    assert "kron" not in bank
    assert run(model, BATCH, ["wide"] * 6).shape[1] == 2


Refusal = Callable[[PeftModel, TaskBank, dict[str, Path], Path], object]


@pytest.mark.parametrize(
    ("refused", "error", "message"),
    [
        (lambda m, b, s, t: b.add("fc", s["kron"]), ValueError, "expected a new name, got 'fc', which is taken"),
        (lambda m, b, s, t: b.add("first", s["kron"]), ValueError, "expected a new name, got 'first'"),
        (lambda m, b, s, t: b.add("__base__", s["kron"]), ValueError, "expected a task's name, got '__base__'"),
        (lambda m, b, s, t: b.add("", s["kron"]), ValueError, "expected a task's name, got ''"),
        (lambda m, b, s, t: b.add("x", t / "none"), (ValueError, OSError), "none"),
        (lambda m, b, s, t: b.add("x", save(t / "l", "bert", method="bitfit")), TypeError, "expected an AoT adapter"),
        (
            lambda m, b, s, t: b.add("x", save(t / "h", bottleneck_input="hidden")),
            ValueError,
            "load it with load_adapter",
        ),
        (
            lambda m, b, s, t: b.add("x", save(t / "e", "electra")),
            ValueError,
            "got one for electra.encoder.layer.0 too",
        ),
        (
            lambda m, b, s, t: b.add("x", save(t / "p", modules_to_save=["classifier", "pooler"])),
            ValueError,
            r"expected heads among \['classifier'\], .* got bert.pooler",
        ),
        (lambda m, b, s, t: TaskBank(build("bert")), TypeError, "expected a PeftModel with an AoT adapter"),
        (lambda m, b, s, t: m.load_adapter(str(s["fc"]), "kron"), ValueError, "the name of a task in the model's bank"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(
    refused: Refusal, error: type[Exception], message: str, saved: dict[str, Path], tmp_path: Path
) -> None:
    model, bank = banked(saved)
    names = [*saved, "first"]
    expected, tasks = run(model, BATCH, names), bank.tasks
    with pytest.raises(error, match=message):
        refused(model, bank, saved, tmp_path)
    assert bank.tasks is tasks and list(model.peft_config) == ["first"]
    assert torch.equal(run(model, BATCH, names), expected)


def test_blocks_that_are_not_wrapped_are_refused(saved: dict[str, Path]) -> None:
    model = PeftModel.from_pretrained(build("bert"), saved["part"], adapter_name="first").eval()
    bank = TaskBank(model)
    with pytest.raises(ValueError, match="expected an adapter for the wrapped blocks .*first adapter all"):
        bank.add("fc", saved["fc"])


def test_values_that_are_not_finite_are_refused(saved: dict[str, Path], tmp_path: Path) -> None:
    model, bank = banked(saved)
    broken = adapted("bert")
    broken.base_model.lookup.modules_of("default")[0].w2.data[0, 0] = float("nan")
    broken.save_pretrained(tmp_path / "nan")
    with pytest.raises(ValueError, match="expected finite values"):
        bank.add("x", tmp_path / "nan")


def test_a_table_that_is_written_to_is_let_go_of(saved: dict[str, Path]) -> None:
    model, bank = banked(saved)
    names = ["fused"] * 6
    bank.replace("fused", saved["fused"], use_table=False)
    expected = run(model, BATCH, names)
    bank.replace("fused", saved["fused"])
    assert bank.tasks["fused"].table is not None
    with (saved["fused"] / "aot_table.safetensors").open("r+b") as file:
        file.truncate(100)
    with pytest.warns(UserWarning, match="got it written to in place since.*the factors are used"):
        assert torch.equal(run(model, BATCH, names), expected)
    assert bank.tasks["fused"].table is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(run(model, BATCH, names), expected)


def test_a_copy_of_a_model_has_the_tasks(saved: dict[str, Path]) -> None:
    model, bank = banked(saved)
    names = [*saved, "first"]
    expected = run(model, BATCH, names)
    for copied in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        other = TaskBank(copied)
        assert list(other) == list(bank)
        other.add("more", saved["fc"])
        torch.testing.assert_close(run(copied, BATCH, names), expected, rtol=1e-5, atol=1e-5)
    assert "more" not in bank and list(TaskBank(model)) == list(bank)


@pytest.mark.parametrize("budget", [None, 2**12, 2**20])
def test_many_threads_never_see_each_others_rows(budget: int | None, saved: dict[str, Path], tmp_path: Path) -> None:
    """Tasks come, change and go, rows are given up, and every answer is one that its task has had."""
    model, bank = banked(saved)
    if budget is not None:
        model.set_table_placement(memory_budget=max(budget, model.base_model.lookup.stacks[0].page_bytes))
    versions = {name: [saved[name]] for name in saved}
    versions["fc"].append(save(tmp_path / "fc2", seed=11))
    versions["kron"].append(save(tmp_path / "kron2", seed=12, reparam="kron"))
    coming = {f"new{k}": save(tmp_path / f"new{k}", seed=20 + k, num_labels=2 + k) for k in range(3)}
    texts = [torch.randint(5, 90, (1, 7), generator=torch.Generator().manual_seed(k)) for k in range(12)]
    alone = PeftModel.from_pretrained(build("bert"), saved["fc"], adapter_name="first").eval()
    oracle_bank = TaskBank(alone)
    oracle: dict[str, list[list[Tensor]]] = {}
    for name, folders in {**versions, **{n: [f] for n, f in coming.items()}}.items():
        oracle[name] = []
        for folder in folders:
            oracle_bank.add("asked", folder)
            oracle[name].append([run(alone, {"input_ids": text}, ["asked"])[0] for text in texts])
            oracle_bank.remove("asked")
    wrong: list[object] = []
    changes = random.Random(0)

    def change() -> None:
        name = changes.choice(["fc", "kron"])
        bank.replace(name, changes.choice(versions[name]))
        name = changes.choice(list(coming))
        if name in bank:
            bank.remove(name)
        else:
            bank.add(name, coming[name])

    def ask(seed: int) -> int:
        rng = random.Random(seed)
        answered = 0
        for _ in range(40):
            names = [rng.choice(list(bank.tasks)) for _ in range(rng.randint(1, 6))]
            chosen = [rng.randrange(len(texts)) for _ in names]
            try:
                found = run(model, {"input_ids": torch.cat([texts[c] for c in chosen])}, names)
            except ValueError as error:  # gone between choosing and asking
                assert "got unknown 'new" in str(error)
                continue
            for name, text, row in zip(names, chosen, found, strict=True):
                right = [answers[text] for answers in oracle[name]]
                got = row[torch.isfinite(row)]
                if not any(len(got) == len(r) and torch.allclose(got, r, rtol=1e-4, atol=1e-4) for r in right):
                    wrong.append((name, text, got, right))
                answered += 1
        return answered

    answered = ask_while_changing(ask, change)
    assert not wrong, wrong[0]
    assert answered > 300


def test_beside_an_adapter_that_is_no_lookup(saved: dict[str, Path], tmp_path: Path) -> None:
    save(tmp_path / "hidden", seed=9, bottleneck_input="hidden")
    expected_model, (model, _) = plain(saved), banked(saved)
    model.load_adapter(str(tmp_path / "hidden"), adapter_name="hidden")
    model.eval()
    found = run(model, BATCH, ["hidden", "fc", "kron", "hidden", "__base__", "wide"])
    expected = run(expected_model, BATCH, ["fc", "fc", "kron", "fc", "__base__", "wide"])
    for row in (1, 2, 4, 5):
        torch.testing.assert_close(found[row], expected[row], rtol=1e-5, atol=1e-5)


def test_tasks_outlive_the_adapters_that_wrapped_their_blocks(saved: dict[str, Path]) -> None:
    model, bank = banked(saved)
    names = ["fc", "kron", "wide", "fused", "part", "fc"]
    expected = run(model, BATCH, names)
    model.load_adapter(str(saved["part"]), adapter_name="second")
    model.set_adapter("second")
    model.delete_adapter("first")
    model.eval()
    torch.testing.assert_close(run(model, BATCH, names), expected, rtol=1e-5, atol=1e-5)
    bank.add("more", saved["fc"])
    torch.testing.assert_close(run(model, BATCH, ["more", *names[1:]]), expected, rtol=1e-5, atol=1e-5)


def test_rows_of_a_pickled_model_are_not_taken_for_those_of_others(saved: dict[str, Path]) -> None:
    model, bank = banked(saved)
    model.set_table_placement("mmap", 2**20)
    run(model, BATCH, ["fc"] * 6)
    copied = pickle.loads(pickle.dumps(model))
    tasks = [task for m in (model, copied) for task in TaskBank(m).tasks.values()]
    numbers = [factors.number for task in tasks for factors in task.factors.values()]
    assert len(set(numbers)) == len(numbers)


@pytest.mark.parametrize("later", [False, True])
def test_a_model_in_half_precision(later: bool, saved: dict[str, Path]) -> None:
    model = PeftModel.from_pretrained(
        build("bert").to(torch.float32 if later else torch.bfloat16), saved["fc"], "first"
    )
    bank = TaskBank(model.eval())
    bank.add("wide", saved["wide"])
    reference = PeftModel.from_pretrained(build("bert").to(torch.bfloat16), saved["wide"], adapter_name="wide").eval()
    if later:
        run(model, BATCH, ["wide"] * 6)
        model.to(torch.bfloat16)
    found, expected = run(model, BATCH, ["wide"] * 6), run(reference, BATCH, ["wide"] * 6)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=5e-2, atol=5e-2)


def test_heads_that_come_after_the_bank(saved: dict[str, Path], tmp_path: Path) -> None:
    """A bank made while the model's only adapter had no head takes tasks that bring one, once an adapter has."""
    torch.manual_seed(0)
    model = get_peft_model(build("bert"), AoTConfig(task_type="FEATURE_EXTRACTION", r=2)).eval()
    bank = TaskBank(model)
    with pytest.raises(ValueError, match=r"expected heads among \[\]"):
        bank.add("wide", saved["wide"])
    model.load_adapter(str(saved["wide"]), adapter_name="second")
    bank.add("wide", saved["wide"])
    model.eval()
    mixed = {name: value[:2] for name, value in BATCH.items()}
    with torch.no_grad():
        found = model(**{**mixed, "input_ids": mixed["input_ids"][:1].repeat(2, 1)}, adapter_names=["second", "wide"])
    torch.testing.assert_close(found.logits[0], found.logits[1], rtol=1e-5, atol=1e-5)


def test_a_table_that_was_replaced_since_a_model_was_pickled(saved: dict[str, Path]) -> None:
    model, _ = banked(saved)
    expected = run(model, BATCH, ["fused"] * 6)
    pickled = pickle.dumps(model)
    save(saved["fused"], seed=77, fuse_on_save=True)
    with pytest.warns(UserWarning, match="stale.*the factors are used"):
        copied = pickle.loads(pickled)
    torch.testing.assert_close(run(copied, BATCH, ["fused"] * 6), expected, rtol=2e-3, atol=2e-3)


def test_beside_an_adapter_in_training_tasks_are_refused(saved: dict[str, Path]) -> None:
    model, _ = banked(saved)
    for module in model.base_model.lookup.modules_of("first"):
        module.requires_grad_(True)
    with pytest.raises(RuntimeError, match="expected tasks of a TaskBank in eager inference, got 'fc' .* freeze that"):
        output(model, BATCH, adapter_names=["first", *["fc"] * 5])
    run(model, BATCH, ["first", *["fc"] * 5])

"""What is saved is the result alone: golden files, loading, and going on from what was saved with new networks."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    PeftModel,
    get_peft_model,
    get_peft_model_state_dict,
    inject_adapter_in_model,
    set_peft_model_state_dict,
)
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import Trainer, TrainingArguments
from transformers.pytorch_utils import Conv1D

from backbones import build, inputs, output
from peft_aot import HiWiConfig, HiWiLayer

TASK = "FEATURE_EXTRACTION"
FILE = "adapter_model.safetensors"
ANEW = "the HiWi adapter 'default' goes on from the values that were saved, with new networks"
for_targets = pytest.mark.parametrize("target", ["bias", "weight"])
for_kinds = pytest.mark.parametrize(("name", "target"), [("bert", "bias"), ("bert", "weight"), ("gpt2", "weight")])


def trained(name: str = "bert", dtype: torch.dtype = torch.float32, seed: int = 0, **fields: Any) -> PeftModel:
    backbone = build(name, TASK).to(dtype)
    torch.manual_seed(seed)
    return get_peft_model(backbone, HiWiConfig(**{"task_type": TASK, "r": 8, "init_weights": False, **fields})).eval()


def hiwi_layers(model: nn.Module) -> list[HiWiLayer]:
    return [m for m in model.modules() if isinstance(m, HiWiLayer)]


def step(model: PeftModel, optimizer: torch.optim.Optimizer | None = None) -> torch.optim.Optimizer:
    optimizer = optimizer or torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    optimizer.zero_grad()
    output(model, inputs("bert", TASK))[:, 0, :5].sum().backward()
    optimizer.step()
    return optimizer


# golden files


def tiny(target: str, rank: int, activation: str) -> PeftModel:
    """A Linear (3, 2) and a Conv1D (2, 3) with values by which no rounding happens, whatever the rank."""
    first, second = nn.Linear(3, 2), Conv1D(2, 3)
    with torch.no_grad():
        first.weight.copy_(torch.tensor([[1.0, 2.0, -1.0], [3.0, 1.0, 0.0]]))
        first.bias.copy_(torch.tensor([1.0, 3.0]))
        second.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 4.0], [1.0, 2.0]]))
        second.bias.copy_(torch.tensor([-1.0, 5.0]))
    config = HiWiConfig(r=rank, target=target, activation=activation, target_modules=["0", "1"])
    model = get_peft_model(nn.Sequential(first, second), config)
    for layer in hiwi_layers(model):
        network = layer.network("default")
        with torch.no_grad():  # every hidden unit is the sum of the row, and every unit adds as much
            network.down.fill_(1.0)
            network.up.copy_((torch.arange(network.width) + 1.0).expand(rank, -1) / rank)
    return model


GOLDEN = {  # by hand: row sums times (1, 2, ...)
    "bias": {"0": [4.0, 8.0], "1": [4.0, 8.0]},
    # rows of the Conv1D's weight are columns here: (1, 0, 1) sums to 2 and (2, 4, 2) to 8
    "weight": {
        "0": [[2.0, 4.0, 6.0], [4.0, 8.0, 12.0]],
        "1": [[2.0, 8.0], [4.0, 16.0], [6.0, 24.0]],
    },
}


@for_targets
def test_golden_file(target: str, tmp_path: Path) -> None:
    files = []
    for rank, activation in ((1, "relu"), (4, "relu"), (4, "identity")):
        folder = tmp_path / f"{rank}{activation}"
        tiny(target, rank, activation).save_pretrained(folder)
        files.append((folder / FILE).read_bytes())
    assert files[0] == files[1] == files[2], "what is stored depends on neither rank nor activation"
    (length,) = struct.unpack("<Q", files[0][:8])
    header, data = json.loads(files[0][8 : 8 + length]), files[0][8 + length :]
    header.pop("__metadata__", None)
    assert set(header) == {f"base_model.model.{i}.hiwi_layer.hiwi_delta" for i in "01"}
    for i, values in GOLDEN[target].items():
        expected = torch.tensor(values)
        entry = header[f"base_model.model.{i}.hiwi_layer.hiwi_delta"]
        assert (entry["dtype"], entry["shape"]) == ("F32", list(expected.shape))
        flat = expected.flatten().tolist()
        assert data[slice(*entry["data_offsets"])] == struct.pack(f"<{len(flat)}f", *flat)
    assert len(data) == sum(4 * torch.tensor(values).numel() for values in GOLDEN[target].values())


# saving and loading


@for_kinds
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_loaded_equals_saved(
    name: str, target: str, dtype: torch.dtype, low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    model, batch = trained(name, dtype, target=target), inputs(name, TASK)
    model.save_pretrained(tmp_path)
    assert {(k.rpartition(".")[2], v.dtype) for k, v in load_file(tmp_path / FILE).items()} == {
        ("hiwi_delta", torch.float32)
    }
    loaded = PeftModel.from_pretrained(build(name, TASK).to(dtype), tmp_path, low_cpu_mem_usage=low_cpu_mem_usage)
    loaded.load_adapter(tmp_path, "second", low_cpu_mem_usage=low_cpu_mem_usage)
    with torch.no_grad():
        expected = output(model, batch)
        assert not torch.allclose(expected, output(build(name, TASK).to(dtype), batch), atol=1e-2)
        assert torch.equal(output(loaded, batch), expected)
        for adapter in ("second", "default"):
            loaded.set_adapter(adapter)
            assert torch.equal(output(loaded, batch), expected)
    assert not [n for n, p in loaded.named_parameters() if p.requires_grad]
    assert all(not layer.hiwi_network and not layer.hiwi_start for layer in hiwi_layers(loaded))
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / FILE).read_bytes() == (tmp_path / FILE).read_bytes()


@for_targets
def test_what_is_saved_comes_from_the_state_dict_that_is_given(target: str, tmp_path: Path) -> None:
    model = trained(target=target)
    averaged = {k: v * 0.5 if k.endswith(".up") else v for k, v in model.state_dict().items()}
    model.save_pretrained(tmp_path / "own")
    model.save_pretrained(tmp_path / "averaged", state_dict=averaged)
    own, half = (load_file(tmp_path / folder / FILE) for folder in ("own", "averaged"))
    assert own.keys() == half.keys() and len(own) == 4
    for key in own:
        torch.testing.assert_close(half[key], own[key] * 0.5)


@for_targets
def test_only_the_adapter_asked_for_is_saved(target: str, tmp_path: Path) -> None:
    model = trained(target=target)
    model.add_adapter("part", HiWiConfig(r=2, target=target, target_modules=["output.dense"]))
    model.save_pretrained(tmp_path)
    assert len(load_file(tmp_path / FILE)) == 4
    part = load_file(tmp_path / "part" / FILE)
    assert len(part) == 2 + 2 and all("output.dense" in key for key in part), "attention.output.dense as well"


@for_targets
def test_saved_while_disabled_or_merged_or_inactive(target: str, tmp_path: Path) -> None:
    model = trained(target=target)
    model.save_pretrained(tmp_path / "active")
    with model.disable_adapter():
        model.save_pretrained(tmp_path / "disabled")
    model.merge_adapter()
    model.save_pretrained(tmp_path / "merged")
    model.unmerge_adapter()
    model.add_adapter("other", HiWiConfig(r=2, target=target, init_weights=False))
    model.set_adapter("other")
    model.save_pretrained(tmp_path / "inactive", selected_adapters=["default"])
    expected = (tmp_path / "active" / FILE).read_bytes()
    for name in ("disabled", "merged", "inactive"):
        assert (tmp_path / name / FILE).read_bytes() == expected, name


def test_injected_without_a_peft_model() -> None:
    model = trained()
    state = get_peft_model_state_dict(model)
    backbone = inject_adapter_in_model(HiWiConfig(inference_mode=True), build("bert", TASK))
    set_peft_model_state_dict(backbone, state)
    batch = inputs("bert", TASK)
    with torch.no_grad():
        assert torch.equal(output(backbone, batch), output(model, batch))
    backbone = inject_adapter_in_model(HiWiConfig(), build("bert", TASK))
    with pytest.warns(UserWarning, match=ANEW):
        set_peft_model_state_dict(backbone, state)
    with torch.no_grad():
        torch.testing.assert_close(output(backbone, batch), output(model, batch))


# going on from what was saved


@for_kinds
@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("share", [False, True])
def test_going_on_from_a_saved_adapter(
    name: str, target: str, share: bool, low_cpu_mem_usage: bool, tmp_path: Path
) -> None:
    model, batch = trained(name, torch.float64, target=target, share=share), inputs(name, TASK)
    model.save_pretrained(tmp_path)
    with pytest.warns(UserWarning, match=ANEW) as seen:
        loaded = PeftModel.from_pretrained(
            build(name, TASK).double(), tmp_path, is_trainable=True, low_cpu_mem_usage=low_cpu_mem_usage
        )
    assert len([w for w in seen if "HiWi" in str(w.message)]) == 1, "one warning per load"
    with torch.no_grad():
        torch.testing.assert_close(output(loaded, batch), output(model, batch), atol=1e-12, rtol=1e-12)
    assert loaded.get_model_status().requires_grad == {"default": True}
    assert {n.rpartition(".")[2] for n, p in loaded.named_parameters() if p.requires_grad} == {"down", "up"}
    assert len({id(layer.network("default")) for layer in hiwi_layers(loaded)}) == (2 if share else 4)
    for layer in hiwi_layers(loaded):
        network = layer.network("default")
        assert not network.up.any() and network.down.std().item() == pytest.approx(network.width**-0.5, rel=0.4)
    output(loaded, batch).square().sum().backward()
    with torch.no_grad():
        for parameter in (p for p in loaded.parameters() if p.requires_grad):
            assert parameter.grad is not None
            parameter += torch.randn_like(parameter) * 0.1
    found = output(loaded, batch)
    # the new network is fed with the saved values, not with the original ones
    bare = build(name, TASK).double()
    for path, layer in loaded.get_base_model().named_modules():
        if isinstance(layer, HiWiLayer):
            owner = path.removesuffix(".hiwi_layer")
            values = bare.get_submodule(owner).get_parameter(target)
            turned = target == "weight" and name == "gpt2"
            start = values + model.get_base_model().get_submodule(path).delta("default")
            rows = start.T if turned else start
            change = torch.relu(rows @ layer.network("default").down) @ layer.network("default").up
            values.data = (rows + change).T.contiguous().detach() if turned else (rows + change).detach()
    torch.testing.assert_close(found, output(bare, batch), atol=1e-9, rtol=1e-9)
    assert (found - output(model, batch)).abs().max() > 1e-3
    loaded.save_pretrained(tmp_path / "more")
    again = PeftModel.from_pretrained(build(name, TASK).double(), tmp_path / "more")
    torch.testing.assert_close(output(again, batch), found, atol=1e-12, rtol=1e-12)


@for_targets
def test_loading_over_an_adapter_in_training(target: str, tmp_path: Path) -> None:
    model, batch = trained(target=target), inputs("bert", TASK)
    optimizer = step(model)
    model.save_pretrained(tmp_path)
    best = output(model, batch).detach()
    for _ in range(2):  # twice, so that a start is replaced as well
        parameters = [p for p in model.parameters() if p.requires_grad]
        step(model, optimizer)
        worse = output(model, batch).detach()
        assert not torch.allclose(worse, best, atol=1e-4)
        with pytest.warns(UserWarning, match=ANEW) as seen:
            model.load_adapter(tmp_path, "default")
        assert len([w for w in seen if "HiWi" in str(w.message)]) == 1
        torch.testing.assert_close(output(model, batch), best, atol=1e-6, rtol=1e-6)
        kept = [p for p in model.parameters() if p.requires_grad]
        assert all(a is b for a, b in zip(parameters, kept, strict=True)), "the optimizer must see the new networks"


@for_targets
def test_loading_that_fails_leaves_an_adapter_in_training_as_it_was(target: str, tmp_path: Path) -> None:
    model, batch = trained(target=target), inputs("bert", TASK)
    model.save_pretrained(tmp_path / "good")
    model.save_pretrained(tmp_path / "bad")
    state = load_file(tmp_path / "bad" / FILE)
    last = sorted(state)[-1]
    save_file({**{k: v + 1 for k, v in state.items()}, last: torch.zeros(3)}, tmp_path / "bad" / FILE)
    for _ in range(2):  # without and with a start
        step(model)
        expected = output(model, batch).detach()
        starts = [len(layer.hiwi_start) for layer in hiwi_layers(model)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with pytest.raises(RuntimeError, match="size mismatch"):
                model.load_adapter(tmp_path / "bad", "default")
            assert torch.equal(output(model, batch), expected)
            assert starts == [len(layer.hiwi_start) for layer in hiwi_layers(model)]
            model.load_adapter(tmp_path / "good", "default")


def test_an_adapter_for_inference_is_loaded_without_a_word(tmp_path: Path) -> None:
    trained().save_pretrained(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        model = PeftModel.from_pretrained(build("bert", TASK), tmp_path)
        model.load_adapter(tmp_path, "default")


def test_what_another_target_stored_is_not_loaded(tmp_path: Path) -> None:
    trained(target="weight").save_pretrained(tmp_path)
    model = trained(target="bias")
    with pytest.raises(ValueError, match="expected target=bias as in the adapter 'default' that is there, got target"):
        model.load_adapter(tmp_path, "default")


# with transformers' Trainer


def trainer(model: PeftModel, folder: Path, **settings: Any) -> Trainer:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(8, 100, (32, 5), generator=generator)
    data = [{"input_ids": row, "labels": (row[0] > 50).long()} for row in ids]
    fixed = {"learning_rate": 0.05, "report_to": "none", "disable_tqdm": True, "use_cpu": True, "save_steps": 2}
    chosen = {"eval_strategy": "steps", "eval_steps": 2, "logging_steps": 2, "save_strategy": "steps"}
    arguments = TrainingArguments(str(folder), **{**fixed, **chosen, "max_steps": 4, **settings})
    return Trainer(model, arguments, train_dataset=data, eval_dataset=data)


def classifier(target: str) -> PeftModel:
    backbone = build("bert")
    torch.manual_seed(0)
    return get_peft_model(backbone, HiWiConfig(task_type="SEQ_CLS", r=8, target=target))


@for_targets
def test_trainer_resumes(target: str, tmp_path: Path) -> None:
    trainer(classifier(target), tmp_path, max_steps=2).train()
    stored = load_file(tmp_path / "checkpoint-2" / FILE)
    assert sum("hiwi_delta" in key for key in stored) == 4 and not [k for k in stored if "network" in k]
    model = classifier(target)
    run = trainer(model, tmp_path)
    with pytest.warns(UserWarning, match=ANEW):
        run.train(resume_from_checkpoint=True)
    assert run.state.global_step == 4
    for layer in hiwi_layers(model):
        assert layer.hiwi_start["default"].any() and layer.network("default").up.any()


@for_targets
def test_trainer_ends_with_the_best(target: str, tmp_path: Path) -> None:
    model = classifier(target)
    # the second evaluation must be the worse one
    run = trainer(model, tmp_path, load_best_model_at_end=True, lr_scheduler_type="constant", learning_rate=2.0)
    with pytest.warns(UserWarning, match=ANEW):
        run.train()
    best = Path(run.state.best_model_checkpoint)
    loaded = PeftModel.from_pretrained(build("bert"), best).eval()
    batch = inputs("bert", "SEQ_CLS")
    with torch.no_grad():
        torch.testing.assert_close(output(model.eval(), batch), output(loaded, batch), atol=1e-5, rtol=1e-5)

"""Backbones spread over devices by accelerate: what works for PEFT's LoRA works here."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn

import peft_aot
from backbones import TASKS, build, inputs, output
from models import adapted, config
from peft_aot.tables import TABLE_FILE

CASES = [("bert", "SEQ_CLS"), ("llama", "CAUSAL_LM"), ("t5", "SEQ_2_SEQ_LM")]


def offload(model: nn.Module, folder: Path) -> nn.Module:
    """Keep every weight on the disk, as accelerate does where memory is short."""
    places = {name: "disk" for name, _ in model.named_children()}
    return dispatch_model(model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)


def answers(model: nn.Module, name: str, task: str, **kwargs: object) -> torch.Tensor:
    with torch.no_grad():
        return output(model, inputs(name, task), **kwargs)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_an_offloaded_model(name: str, task: str, tmp_path: Path) -> None:
    targets = {"bert": ["query"], "llama": ["q_proj"], "t5": ["q"]}[name]
    for make in (
        lambda: get_peft_model(build(name, task), LoraConfig(task_type=task, target_modules=targets)).eval(),
        lambda: adapted(name, task),
    ):
        expected = answers(make(), name, task)
        model = offload(make(), tmp_path / str(id(make)))
        assert any(p.device.type == "meta" for p in model.parameters())
        if isinstance(model.peft_config["default"], LoraConfig):
            assert answers(model, name, task).shape == expected.shape, "what LoRA can"
        else:
            torch.testing.assert_close(answers(model, name, task), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("name", "task"), CASES)
def test_adapters_on_an_offloaded_backbone(name: str, task: str, tmp_path: Path) -> None:
    original = adapted(name, task)
    expected = answers(original, name, task)
    original.save_pretrained(tmp_path / "adapter", fuse=True)
    backbone = offload(build(name, task), tmp_path / "offload")
    model = PeftModel.from_pretrained(backbone, tmp_path / "adapter", use_table=False)
    torch.testing.assert_close(answers(model, name, task), expected, atol=1e-5, rtol=1e-5)
    model.load_adapter(tmp_path / "adapter", adapter_name="second")
    mixed = answers(model, name, task, adapter_names=["default", "__base__", "second"])
    torch.testing.assert_close(mixed[0], expected[0], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(mixed[2], expected[2], atol=2e-1, rtol=1e-1)
    model.save_pretrained(tmp_path / "again", fuse=True)
    assert (tmp_path / "again" / TABLE_FILE).read_bytes() == (tmp_path / "adapter" / TABLE_FILE).read_bytes()


@pytest.mark.parametrize(("name", "task"), CASES)
def test_a_backbone_loaded_with_a_device_map(name: str, task: str, tmp_path: Path) -> None:
    original = adapted(name, task)
    expected = answers(original, name, task)
    original.save_pretrained(tmp_path / "adapter", fuse=True)
    build(name, task).save_pretrained(tmp_path / "backbone")
    backbone = TASKS[task].from_pretrained(tmp_path / "backbone", device_map={"": "cpu"}).eval()
    model = PeftModel.from_pretrained(backbone, tmp_path / "adapter", use_table=False)
    torch.testing.assert_close(answers(model, name, task), expected, atol=1e-5, rtol=1e-5)
    fresh = get_peft_model(TASKS[task].from_pretrained(tmp_path / "backbone", device_map="auto"), config(name, task))
    assert answers(fresh.eval(), name, task).shape == expected.shape


def test_fusing_with_an_offloaded_backbone(tmp_path: Path) -> None:
    adapted("bert").save_pretrained(tmp_path / "adapter")
    expected = peft_aot.fuse(tmp_path / "adapter", build("bert"), progress=False)
    content = expected.path.read_bytes()
    backbone = offload(build("bert"), tmp_path / "offload")
    assert backbone.get_input_embeddings().weight.device.type == "meta"
    peft_aot.fuse(tmp_path / "adapter", backbone, progress=False)
    assert expected.path.read_bytes() == content

"""torch.compile without graph breaks: training, fused inference, mixed batches, and what recompiles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

from backbones import build, inputs, output
from models import adapted, config

BATCH = inputs("bert", "SEQ_CLS")


def compiled(model: nn.Module) -> nn.Module:
    torch.compiler.reset()
    return torch.compile(model, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("name", ["bert", "modernbert"])
@pytest.mark.parametrize("reparam", ["fc", "kron"])
def test_training_step(name: str, reparam: str) -> None:
    model, twin = adapted(name, reparam=reparam), adapted(name, reparam=reparam)
    fast = compiled(model)
    labels = torch.tensor([0, 1, 1])
    for each in (fast, twin):
        each(**BATCH, labels=labels).loss.backward()
    for (n, p), q in zip(model.named_parameters(), twin.parameters(), strict=True):
        if p.requires_grad:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-5, rtol=1e-4, msg=n)


def test_fused_inference(tmp_path: Path) -> None:
    adapted("bert", fuse_on_save=True, table_dtype="float32").save_pretrained(tmp_path)
    model = PeftModel.from_pretrained(build("bert"), tmp_path)
    fast = compiled(model)
    with torch.no_grad():
        expected = output(model, BATCH)
        for module in model.modules():  # the factors would give something else, so that they are seen not to be used
            if (
                isinstance(module, nn.ModuleDict)
                and "default" in module
                and "FCRows" in type(module["default"]).__name__
            ):
                module["default"].forward = None
        torch.testing.assert_close(output(fast, BATCH), expected, atol=1e-5, rtol=1e-5)


def test_mixed_batches() -> None:
    model = adapted("bert")
    torch.manual_seed(4)
    model.add_adapter("other", config("bert", "SEQ_CLS", reparam="kron"))
    model.eval()
    fast = compiled(model)
    with torch.no_grad():
        for names in (["default", "other", "__base__"], ["other", "other", "default"], None):
            for seed in (1, 2):
                batch = inputs("bert", "SEQ_CLS", seed=seed)
                expected = output(model, batch, adapter_names=names)
                torch.testing.assert_close(output(fast, batch, adapter_names=names), expected, atol=1e-5, rtol=1e-5)


def test_disabling_and_switching_after_compilation() -> None:
    model = adapted("bert")
    torch.manual_seed(4)
    model.add_adapter("other", config("bert", "SEQ_CLS"))
    model.eval()
    fast = compiled(model)
    with torch.no_grad():
        first = output(fast, BATCH)
        model.set_adapter("other")
        second = output(fast, BATCH)
        torch.testing.assert_close(second, output(model, BATCH), atol=1e-5, rtol=1e-5)
        assert not torch.allclose(first, second, atol=1e-3)
        with model.disable_adapter():
            torch.testing.assert_close(output(fast, BATCH), output(build("bert"), BATCH), atol=1e-5, rtol=1e-5)

"""What the docs say of PEFT's own mixed batches; if one of these fails, PEFT has improved and the docs must follow."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from backbones import build, inputs, output

BATCH = inputs("roberta", "SEQ_CLS")
NAMES = ["default", "__base__", "default"]


def lora(name: str, num_labels: int = 2) -> PeftModel:
    return get_peft_model(build(name, num_labels=num_labels), LoraConfig(task_type="SEQ_CLS", r=2)).eval()


def test_composite_heads_raise() -> None:
    with pytest.raises(TypeError, match="Mixed batching is only supported for the following modules"):
        output(lora("roberta"), BATCH, adapter_names=NAMES)


def test_heads_of_another_size_do_not_load(tmp_path: Path) -> None:
    lora("bert", num_labels=7).save_pretrained(tmp_path)
    model = lora("bert")
    with pytest.raises(RuntimeError, match="size mismatch"):
        model.load_adapter(tmp_path, adapter_name="seven")


def test_hooks_stay_behind_when_forward_raises() -> None:
    model = lora("roberta")
    with pytest.raises(TypeError):
        output(model, BATCH, adapter_names=NAMES)
    assert any(module._forward_pre_hooks for module in model.modules())
    with pytest.raises(TypeError), torch.no_grad():
        output(model, BATCH)  # a plain call now fails too

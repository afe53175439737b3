"""Adapters that train the backbone's input embeddings too: rows go by the ids, and by the backbone's own embeddings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel

from backbones import build, inputs, output
from models import adapted

BATCH = inputs("bert", "SEQ_CLS")


@pytest.fixture(params=["fc", "kron"])
def model(request: pytest.FixtureRequest, tmp_path: Path) -> PeftModel:
    """A model of two such adapters."""
    for seed, name in enumerate(("one", "two")):
        trained = adapted("bert", seed=seed, reparam=request.param, modules_to_save=["word_embeddings"])
        trained.save_pretrained(tmp_path / name)
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path / "one", adapter_name="one").eval()
    loaded.load_adapter(tmp_path / "two", "two")
    return loaded


@torch.no_grad()
def test_mixed_batches(model: PeftModel) -> None:
    mixed = output(model, BATCH, adapter_names=["one", "two", "__base__"])
    for row, name in enumerate(("one", "two")):
        model.set_adapter(name)
        torch.testing.assert_close(output(model, BATCH)[row], mixed[row], atol=1e-5, rtol=1e-5)
    with model.disable_adapter():
        torch.testing.assert_close(output(model, BATCH)[2], mixed[2], atol=1e-5, rtol=1e-5)
    assert not torch.allclose(mixed[0], mixed[2], atol=1e-3)


@torch.no_grad()
def test_embeddings_of_the_trained_copy_carry_their_ids(model: PeftModel) -> None:
    rest = {name: value for name, value in BATCH.items() if name != "input_ids"}
    for name in ("one", "two"):
        model.set_adapter(name)
        embeddings = model.get_input_embeddings()(BATCH["input_ids"])
        assert torch.equal(output(model, {**rest, "inputs_embeds": embeddings}), output(model, BATCH))
    with pytest.raises(ValueError, match="expected token ids, got inputs_embeds"):
        output(adapted("bert"), {**rest, "inputs_embeds": embeddings})


def test_the_backbone_is_given_back_without_hooks(model: PeftModel) -> None:
    output(model, BATCH, adapter_names=["one", "two", "one"])
    assert not [name for name, module in model.unload().named_modules() if module._forward_hooks]

"""The saved file, byte for byte, what is said of it, and adapters that cannot be merged or lie on no device."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from accelerate import dispatch_model
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn

from backbones import build, inputs, output
from models import adapted, config
from peft_aot import HoulsbyConfig
from peft_aot.info import describe

TASK = "FEATURE_EXTRACTION"
BATCH = inputs("bert", TASK)
KEYS = [
    f"base_model.model.encoder.layer.{block}.{part}.houlsby_layer.houlsby_{tensor}"
    for block in (0, 1)
    for part in ("attention.output.dense", "output.dense")
    for tensor in ("down.bias", "down.weight", "up.bias", "up.weight")
]
SHAPES = {"down.bias": [2], "down.weight": [2, 32], "up.bias": [32], "up.weight": [32, 2]}
DATA_SHA256 = "108c800411ea51f3e3d03a607cee1ab65188f2b4bf94d2449ff8f4fbfb06fcc3"


def golden() -> PeftModel:
    """An adapter whose values depend on nothing but their place."""
    model = get_peft_model(build("bert", TASK), HoulsbyConfig(task_type=TASK, r=2)).eval()
    with torch.no_grad():
        for number, key in enumerate(KEYS):
            owner, _, kind = key.rpartition(".")
            p = model.get_parameter(f"{owner}.default.{kind}")
            p.copy_((torch.arange(p.numel()).view_as(p) % 7 - 3 + number) / 64)
    return model


def test_golden_file(tmp_path: Path) -> None:
    golden().save_pretrained(tmp_path)
    content = (tmp_path / "adapter_model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    header.pop("__metadata__")
    assert sorted(header) == sorted(KEYS)
    assert {entry["dtype"] for entry in header.values()} == {"F32"}
    assert all(header[key]["shape"] == SHAPES[key.partition("houlsby_layer.houlsby_")[2]] for key in KEYS)
    in_order = b"".join(content[8 + length :][slice(*header[key]["data_offsets"])] for key in KEYS)
    assert len(in_order) == len(content) - 8 - length == 4 * 4 * (2 * 2 * 32 + 2 + 32)
    assert hashlib.sha256(in_order).hexdigest() == DATA_SHA256
    settings = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    own = ("peft_type", "r", "activation", "dropout", "placement", "layers_to_transform", "target_modules")
    assert [settings[name] for name in own] == ["HOULSBY", 2, "gelu", 0.0, "both", None, None]


def test_the_whole_adapter_is_loaded(tmp_path: Path) -> None:
    model = golden()
    model.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(build("bert", TASK), tmp_path)
    with torch.no_grad():
        assert torch.equal(output(loaded, BATCH), output(model, BATCH))
        saved = load_file(tmp_path / "adapter_model.safetensors")
        for key in KEYS:  # each of them matters
            owner, _, kind = key.rpartition(".")
            p = loaded.get_parameter(f"{owner}.default.{kind}")
            assert torch.equal(p, saved[key]) and not p.requires_grad
            p += 1
            assert not torch.equal(output(loaded, BATCH), output(model, BATCH)), key
            p.copy_(saved[key])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 3}, r"expected r=4 as in the adapter 'default' that is there, got r=3; call delete_adapter first"),
        ({"activation": "tanh"}, "expected activation=gelu as in the adapter 'default'.*, got activation=tanh"),
        ({"placement": "ffn"}, "expected placement=both as in the adapter 'default'.*, got placement=ffn"),
    ],
)
def test_another_architecture_is_not_loaded_over_an_adapter(
    fields: dict[str, object], message: str, tmp_path: Path
) -> None:
    adapted("bert", method="houlsby", **fields).save_pretrained(tmp_path)
    model = adapted("bert", method="houlsby")
    with pytest.raises(ValueError, match=message):
        model.load_adapter(tmp_path, "default")


def test_what_is_said_of_it(tmp_path: Path) -> None:
    adapted("bert", method="houlsby", layers_to_transform=[1], placement="ffn").save_pretrained(tmp_path)
    info = describe(tmp_path)
    assert info.method_name == "Houlsby" and info.rank == 4 and info.own_bytes == 4 * (2 * 4 * 32 + 4 + 32)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "## Houlsby adapter\n" in card and "- houlsby-adapter" in card
    summary = "rank 4, activation gelu, placement ffn, layers to transform 1"
    assert f"A [Houlsby](https://arxiv.org/abs/1902.00751) adapter ({summary}) for" in card


def test_merging_is_refused_with_the_reason() -> None:
    model = adapted("bert", TASK, method="houlsby")
    expected = output(model, BATCH)
    message = "not linear in the hidden state: no weight can hold them. Call unload.. for the backbone without them"
    for merge in (model.merge_adapter, model.merge_and_unload, model.base_model.layers()[0].merge):
        with pytest.raises(ValueError, match=message):
            merge()
    model.unmerge_adapter()
    assert torch.equal(output(model, BATCH), expected) and model.get_model_status().merged_adapters == []


def test_layer_norms_can_be_trained_beside_as_in_the_paper(tmp_path: Path) -> None:
    model = get_peft_model(build("bert", TASK), config("bert", TASK, "houlsby", modules_to_save=["LayerNorm"])).eval()
    trained = [n for n, p in model.named_parameters() if p.requires_grad and "houlsby_" not in n]
    assert len(trained) == 2 * 5 and all("LayerNorm.modules_to_save.default" in n for n in trained)
    with torch.no_grad():
        for name in trained:
            model.get_parameter(name).add_(torch.randn(32))
    model.save_pretrained(tmp_path)
    loaded, expected = PeftModel.from_pretrained(build("bert", TASK), tmp_path), output(model, BATCH)
    torch.testing.assert_close(output(loaded, BATCH), expected)
    mixed, bare = (
        output(loaded, BATCH, adapter_names=["default", "__base__", "default"]),
        output(build("bert", TASK), BATCH),
    )
    torch.testing.assert_close(mixed, torch.stack([expected[0], bare[1], expected[2]]), atol=1e-5, rtol=1e-5)
    assert not torch.allclose(expected, bare, atol=1e-2)


def test_a_new_adapter_on_an_offloaded_backbone(tmp_path: Path) -> None:
    def offloaded() -> nn.Module:
        backbone = build("bert", TASK)
        places = {name: "disk" for name, _ in backbone.named_children()}
        return dispatch_model(backbone, places, main_device="cpu", offload_dir=str(tmp_path), force_hooks=True)

    model = get_peft_model(offloaded(), config("bert", TASK, "houlsby", init_weights=True)).eval()
    assert model.get_parameter("base_model.model.encoder.layer.0.output.dense.weight").is_meta
    with torch.no_grad():
        torch.testing.assert_close(output(model, BATCH), output(build("bert", TASK), BATCH))
    output(model, BATCH).sum().backward()
    grads = [p.grad for n, p in model.named_parameters() if "houlsby_up" in n]
    assert len(grads) == 8 and all(g.device.type == "cpu" and g.any() for g in grads)

"""Which configurations are refused, and that the others survive their file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from peft import PeftConfig, get_peft_model

import peft_aot
from backbones import build


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "expected r to be a positive integer, got 0; 64 is a good start"),
        ({"r": -3}, "expected r to be a positive integer, got -3"),
        ({"r": 2.5}, "expected r to be a positive integer, got 2.5"),
        ({"r": True}, "expected r to be a positive integer, got True"),
        ({"r": "8"}, "expected r to be a positive integer, got '8'"),
        ({"reparam": "kronecker"}, "expected a known reparam, got 'kronecker'; did you mean 'kron'"),
        ({"activation": "gleu"}, "expected a known activation, got 'gleu'; did you mean 'gelu'"),
        ({"activation": "xyz"}, "expected a known activation, got 'xyz'; choose one of gelu, identity"),
        (
            {"table_dtype": "fp16"},
            "expected a known table_dtype, got 'fp16'; choose one of bfloat16, float16, float32, i",
        ),
        ({"table_dtype": "flaot16"}, "expected a known table_dtype, got 'flaot16'; did you mean 'float16'"),
        ({"dropout": 1.0}, r"expected dropout in \[0, 1\), got 1.0; 0 switches it off"),
        ({"dropout": -0.1}, r"expected dropout in \[0, 1\), got -0.1"),
        ({"dropout": None}, r"expected dropout in \[0, 1\), got None"),
        ({"dropout": float("nan")}, r"expected dropout in \[0, 1\), got nan"),
        ({"kron_shape": (4, 4)}, "expected kron_shape only with reparam='kron', got it with reparam='fc'; remove one"),
        ({"reparam": "kron", "kron_shape": (0, 4)}, "expected kron_shape of positive integers, got .0, 4.; leave it"),
        ({"reparam": "kron", "kron_shape": (4,)}, r"expected kron_shape to be a pair of integers \(a, b\), got \(4,\)"),
        ({"reparam": "kron", "kron_shape": (4, 4, 4)}, "expected kron_shape to be a pair of integers"),
        ({"reparam": "kron", "kron_shape": (2.5, 4)}, "expected kron_shape to be a pair of integers"),
        ({"reparam": "kron", "kron_shape": 16}, "expected kron_shape to be a pair of integers"),
        (
            {"reparam": "kron", "kron_shape": (4, 4), "vocab_size": 17},
            r"expected kron_shape \(a, b\) with a \* b >= 17 \(the vocabulary\), got 4 \* 4 = 16; raise one of them",
        ),
        (
            {"target_modules": ".*", "layers_to_transform": [1]},
            "expected target_modules to be a list with layers_to_transform, got a regex; select the blocks with one",
        ),
        (
            {"bottleneck_input": "hiden"},
            "expected a known bottleneck_input, got 'hiden'; did you mean 'hidden'",
        ),
        (
            {"bottleneck_input": "random", "reparam": "kron"},
            "expected bottleneck_input='random' only with reparam='fc', got it with reparam='kron'; remove one",
        ),
        (
            {"bottleneck_input": "hidden", "reparam": "constant"},
            "expected bottleneck_input='hidden' only with reparam='fc', got it with reparam='constant'; remove one",
        ),
        (
            {"bottleneck_input": "hidden", "fuse_on_save": True},
            "expected an adapter whose rows depend on the token id alone.*got bottleneck_input='hidden'.*leave fuse_on",
        ),
        (
            {"reparam": "constant", "kron_shape": (4, 4)},
            "expected kron_shape only with reparam='kron', got it with reparam='constant'; remove one",
        ),
        ({"alpha": 0}, "expected alpha to be a positive number, got 0; leave it out for the default"),
        ({"alpha": float("nan")}, "expected alpha to be a positive number, got nan"),
        ({"alpha": "8"}, "expected alpha to be a positive number, got '8'"),
        ({"layers_pattern": "layer"}, "expected layers_pattern only with layers_to_transform, got it alone; pass both"),
    ],
)
def test_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        peft_aot.AoTConfig(**fields)


def test_a_kron_shape_too_small_for_the_backbone_is_refused_before_anything_changes() -> None:
    backbone = build("bert")
    before = str(backbone)
    with pytest.raises(ValueError, match=r"with a \* b >= 120 \(the vocabulary\), got 10 \* 11 = 110"):
        get_peft_model(backbone, peft_aot.AoTConfig(reparam="kron", kron_shape=(10, 11)))
    assert str(backbone) == before
    model = get_peft_model(backbone, peft_aot.AoTConfig(r=3, reparam="kron", kron_shape=(10, 12)))
    rows = model.base_model.lookup.modules_of("default")[0]
    assert rows.w_l.shape == (10, 3) and rows.w_m.shape == (12, 3) and rows.w_r.shape == (9, 32)


def test_json_round_trip(tmp_path: Path) -> None:
    config = peft_aot.AoTConfig(
        task_type="SEQ_CLS",
        r=7,
        reparam="kron",
        kron_shape=[11, 12],
        alpha=2.5,
        dropout=0.25,
        normalize_embeddings=False,
        target_modules={"layer.1", "layer.0"},
        exclude_modules=["layer.1"],
        layers_to_transform=[0, 1],
        layers_pattern=["layer"],
        modules_to_save=["pooler"],
        init_weights=False,
        fuse_on_save=True,
        table_dtype="int8",
        vocab_size=120,
        token_dim=32,
        num_layers=2,
    )
    config.save_pretrained(str(tmp_path))
    for cls in (PeftConfig, peft_aot.AoTConfig):
        loaded = cls.from_pretrained(str(tmp_path))
        assert isinstance(loaded, peft_aot.AoTConfig)
        assert loaded.kron_shape == (11, 12) and loaded.target_modules == ["layer.0", "layer.1"]
        assert {**loaded.to_dict(), "inference_mode": False} == {**config.to_dict(), "inference_mode": False}
    raw = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert raw["peft_type"] == "AOT" and raw["kron_shape"] == [11, 12]


def test_defaults_survive_too(tmp_path: Path) -> None:
    peft_aot.AoTConfig().save_pretrained(str(tmp_path))
    assert (
        PeftConfig.from_pretrained(str(tmp_path)).to_dict()
        == peft_aot.AoTConfig(peft_version=PeftConfig.from_pretrained(str(tmp_path)).peft_version).to_dict()
    )


def test_fields_of_a_later_version_are_left_out_with_a_warning(tmp_path: Path) -> None:
    peft_aot.AoTConfig(r=5).save_pretrained(str(tmp_path))
    path = tmp_path / "adapter_config.json"
    raw = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**raw, "field_of_the_future": 1}), encoding="utf-8")
    with pytest.warns(UserWarning, match="field_of_the_future"):
        loaded = PeftConfig.from_pretrained(str(tmp_path))
    assert isinstance(loaded, peft_aot.AoTConfig) and loaded.r == 5


def test_every_field_is_described() -> None:
    import dataclasses

    own = set(peft_aot.AoTConfig.__annotations__)
    for field in dataclasses.fields(peft_aot.AoTConfig):
        if field.name in own:
            assert field.metadata["help"].strip(), field.name

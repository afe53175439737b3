"""Which configurations of Houlsby adapters are refused, and that the others survive their file."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from peft import PeftConfig

from peft_aot import BitFitConfig, HoulsbyConfig
from peft_aot.houlsby.config import as_houlsby


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "expected r to be a positive integer, got 0; 64 is a good start"),
        ({"r": 2.0}, "expected r to be a positive integer, got 2.0"),
        ({"r": True}, "expected r to be a positive integer, got True"),
        ({"activation": "gleu"}, "expected a known activation, got 'gleu'; did you mean 'gelu'"),
        ({"placement": "atention"}, "expected a known placement, got 'atention'; did you mean 'attention'"),
        ({"placement": "mlp"}, "expected a known placement, got 'mlp'; choose one of both, attention, ffn"),
        ({"placement": None}, "expected a known placement, got None"),
        ({"dropout": 1.0}, r"expected dropout in \[0, 1\), got 1.0; 0 switches it off"),
        ({"dropout": -0.1}, r"expected dropout in \[0, 1\), got -0.1"),
        ({"dropout": float("nan")}, r"expected dropout in \[0, 1\), got nan"),
        ({"dropout": "0.1"}, r"expected dropout in \[0, 1\), got '0.1'"),
        ({"layers_to_transform": -1}, "to be numbers of blocks, counted from 0, got -1; leave it out to take all"),
        ({"layers_to_transform": []}, r"to be numbers of blocks, counted from 0, got \[\]; leave it out"),
        ({"layers_to_transform": [0, "1"]}, r"to be numbers of blocks, counted from 0, got \[0, '1'\]"),
        ({"layers_to_transform": True}, "to be numbers of blocks, counted from 0, got True"),
        (
            {"target_modules": ["o_proj"], "layers_to_transform": 1},
            r"expected target_modules without layers_to_transform and placement, .* got them with "
            r"layers_to_transform=1 and placement='both'; name all modules in target_modules",
        ),
        (
            {"target_modules": ["o_proj"], "placement": "ffn"},
            r"expected target_modules without .* got them with layers_to_transform=None and placement='ffn'; name all",
        ),
    ],
)
def test_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HoulsbyConfig(**fields)


def test_json_round_trip(tmp_path: Path) -> None:
    config = HoulsbyConfig(
        task_type="SEQ_CLS",
        r=7,
        activation="tanh",
        dropout=0.25,
        placement="ffn",
        layers_to_transform=(2, 0),
        exclude_modules={"layer.1.output.dense", "layer.0.output.dense"},
        modules_to_save=["LayerNorm"],
        init_weights=False,
    )
    config.save_pretrained(str(tmp_path))
    for cls in (PeftConfig, HoulsbyConfig):
        loaded = cls.from_pretrained(str(tmp_path))
        assert isinstance(loaded, HoulsbyConfig)
        assert {**loaded.to_dict(), "inference_mode": False} == {**config.to_dict(), "inference_mode": False}
    raw = json.loads((tmp_path / "adapter_config.json").read_text(encoding="utf-8"))
    assert raw["peft_type"] == "HOULSBY" and raw["layers_to_transform"] == [0, 2]
    assert raw["exclude_modules"] == ["layer.0.output.dense", "layer.1.output.dense"]


def test_a_number_of_a_block_alone() -> None:
    assert HoulsbyConfig(layers_to_transform=3).layers_to_transform == [3]


def test_every_field_is_described() -> None:
    own = set(HoulsbyConfig.__annotations__)
    assert all(f.metadata["help"].strip() for f in dataclasses.fields(HoulsbyConfig) if f.name in own)


def test_the_configuration_of_another_method_is_refused() -> None:
    with pytest.raises(TypeError, match="expected a HoulsbyConfig, got BitFitConfig; do not mix methods in one model"):
        as_houlsby(BitFitConfig())

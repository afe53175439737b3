"""The configuration: its defaults, what it refuses and what it stores."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from peft import PeftConfig

from peft_aot import HiWiConfig


def test_defaults() -> None:
    config = HiWiConfig()
    assert (config.r, config.target, config.activation, config.share, config.init_weights) == (
        16, "bias", "relu", False, True,
    )  # fmt: skip
    assert config.peft_type == "HIWI"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"r": 0}, "expected r to be a positive integer, got 0; 16 is a good start"),
        ({"r": 2.0}, "expected r to be a positive integer, got 2.0"),
        ({"r": True}, "expected r to be a positive integer, got True"),
        ({"target": "weights"}, "expected a known target, got 'weights'; did you mean 'weight'"),
        ({"target": None}, "expected a known target, got None; choose one of bias, weight"),
        ({"activation": "ReLU6"}, "expected a known activation, got 'ReLU6'; did you mean 'relu'"),
    ],
)
def test_refuses(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        HiWiConfig(**fields)


def test_is_stored_and_read_by_peft(tmp_path: Path) -> None:
    fields = {"r": 3, "target": "weight", "activation": "tanh", "share": True, "target_modules": {"b", "a"}}
    HiWiConfig(**fields).save_pretrained(tmp_path)
    found = PeftConfig.from_pretrained(tmp_path)
    assert isinstance(found, HiWiConfig)
    assert {name: getattr(found, name) for name in fields} == {**fields, "target_modules": ["a", "b"]}


def test_every_field_is_described() -> None:
    for name in ("r", "target", "activation", "share", "init_weights"):
        assert HiWiConfig.__dataclass_fields__[name].metadata["help"]

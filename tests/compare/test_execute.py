"""What a run writes down of the adapter it trained."""

from __future__ import annotations

import json
from pathlib import Path

from peft.utils import CONFIG_NAME

from peft_aot.compare.execute import adapter_config


def test_a_configuration_is_the_same_from_every_process(tmp_path: Path) -> None:
    saved = {"target_modules": ["value", "query"], "kron_shape": [9, 3], "r": 8, "revision": None}
    (tmp_path / CONFIG_NAME).write_text(json.dumps(saved), encoding="utf-8")
    assert adapter_config(tmp_path) == {"target_modules": ["query", "value"], "kron_shape": [9, 3], "r": 8}


def test_a_whole_model_has_none(tmp_path: Path) -> None:
    assert adapter_config(tmp_path) == {}

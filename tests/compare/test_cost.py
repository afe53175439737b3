"""Inference timings: of the settings they name, on adapters that were saved and loaded again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import peft_aot.compare.cost as cost
from peft_aot.compare.options import CompareOptions
from peft_aot.rendering import Item
from tiny_text import write_backbone

ITEMS = [Item(((f"the {animal} is red", None),), 0) for animal in ("dog", "cat", "horse", "bird")]


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> CompareOptions:
    folder = tmp_path_factory.mktemp("cost")
    return CompareOptions(str(write_backbone(folder / "bb")), Path(folder / "out"), ("rte",), timing_rounds=2)


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> dict[str, torch.nn.Module]:
    """The models that are timed, by variant."""
    found: dict[str, torch.nn.Module] = {}
    check = cost._check_equal

    def watched(models: dict[str, torch.nn.Module], batch: dict[str, torch.Tensor]) -> None:
        found.update(models)
        check(models, batch)

    monkeypatch.setattr(cost, "_check_equal", watched)
    return found


@pytest.mark.parametrize("method", ["bitfit", "hiwi", "pafi"])
def test_methods_without_a_trace_in_the_forward_path_are_timed_without_one(
    options: CompareOptions, timed: dict[str, torch.nn.Module], method: str
) -> None:
    (record,) = cost.measure_cost(options, method, {"learning_rate": 1e-3}, ITEMS)
    assert (record.variant, record.batch[0], len(record.samples)) == ("", 4, 2)
    hooks = sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in timed[""].base_model.model.bert.modules())
    assert hooks == 0
    assert not any(p.requires_grad for n, p in timed[""].named_parameters() if "classifier" not in n)


def test_the_settings_that_are_named_are_those_that_are_timed(
    options: CompareOptions, timed: dict[str, torch.nn.Module]
) -> None:
    settings = {"learning_rate": 1e-3, "rank": 3, "layers_to_transform": [1]}
    records = cost.measure_cost(options, "aot", settings, ITEMS)
    assert [record.variant for record in records] == ["factors", "table"]
    assert all(record.settings == settings for record in records)
    for model in (timed["factors"], timed["table"]):
        assert model.peft_config["default"].r == 3
        assert len(model.base_model.lookup.modules_of("default")) == 1
    assert list(timed["table"].base_model.lookup.tables) == ["default"]
    assert not timed["factors"].base_model.lookup.tables


def test_a_control_that_is_no_lookup_has_no_table(options: CompareOptions) -> None:
    records = cost.measure_cost(options, "aot-hidden", {"rank": 3}, ITEMS)
    assert [record.variant for record in records] == ["factors"]


def test_what_disagrees_is_not_timed(options: CompareOptions, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cost, "TOLERANCE", -1.0)
    with pytest.raises(ValueError, match=r"expected fused and unfused AoT to differ by at most -1\.0, got"):
        cost.measure_cost(options, "aot", {"rank": 3}, ITEMS)

"""PEFT knows the method as if it were its own, and every other method as before."""

from __future__ import annotations

import importlib
import inspect
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from peft import (
    AutoPeftModel,
    AutoPeftModelForCausalLM,
    AutoPeftModelForFeatureExtraction,
    AutoPeftModelForSequenceClassification,
    LoraConfig,
    PeftConfig,
    PeftModel,
    PeftType,
    get_peft_config,
    get_peft_model,
)
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from torch import nn

import peft_aot
from backbones import build, inputs, output
from models import adapted, config
from peft_aot import _registration

BATCH = inputs("bert", "SEQ_CLS")


def test_registering_again_changes_nothing() -> None:
    before = [PeftModel.save_pretrained, PeftModel.load_adapter, PeftModel.push_to_hub, list(PeftType), peft.__all__[:]]
    peft_aot.register()
    importlib.reload(_registration).register()
    after = [PeftModel.save_pretrained, PeftModel.load_adapter, PeftModel.push_to_hub, list(PeftType), peft.__all__[:]]
    assert after == before
    assert [t for t in PeftType if t == "AOT"] == [PeftType.AOT]
    assert peft.__all__.count("AoTConfig") == peft.tuners.__all__.count("AoTModel") == 1


@pytest.mark.parametrize("version", ["0.21.1", "0.22.0", "1.0"])
def test_unsupported_versions(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peft, "__version__", version)
    with pytest.raises(
        ImportError, match=rf"expected peft >=0.21.2,<0.22, got peft {version}; run `pip install 'peft>=0.21.2,<0.22'`"
    ):
        peft_aot.register()


def test_peft_finds_the_classes_by_name() -> None:
    assert PEFT_TYPE_TO_CONFIG_MAPPING["AOT"] is PEFT_TYPE_TO_CONFIG_MAPPING[PeftType.AOT] is peft_aot.AoTConfig
    assert PEFT_TYPE_TO_TUNER_MAPPING[PeftType.AOT] is peft_aot.AoTModel
    found = get_peft_config({"peft_type": "AOT", "r": 3, "task_type": "SEQ_CLS"})
    assert isinstance(found, peft_aot.AoTConfig) and found.r == 3
    namespace: dict[str, object] = {}
    exec("from peft import *", namespace)
    assert namespace["AoTConfig"] is peft_aot.AoTConfig


def test_signatures_are_still_those_of_peft() -> None:
    for name in ("save_pretrained", "load_adapter", "push_to_hub"):
        method = getattr(PeftModel, name)
        assert inspect.signature(method) == inspect.signature(inspect.unwrap(method))
        assert method.__doc__ == inspect.unwrap(method).__doc__


@pytest.mark.parametrize("order", ["import peft, peft_aot", "import peft_aot, peft", "import transformers, peft_aot"])
@pytest.mark.slow
def test_importing_in_any_order(order: str) -> None:
    code = f"{order}; import peft_aot.aot, peft; assert peft.AoTConfig().peft_type == 'AOT'; print(len(peft.PeftType))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == len(PeftType)


def on_disk(name: str, task: str, tmp_path: Path, save: Callable[..., object] | None = None) -> PeftModel:
    """A fused adapter in tmp_path/adapter whose configuration names the backbone in tmp_path/backbone."""
    backbone = build(name, task)
    backbone.save_pretrained(tmp_path / "backbone")
    backbone = type(backbone).from_pretrained(tmp_path / "backbone")
    torch.manual_seed(3)
    model = get_peft_model(backbone, config(name, task, fuse_on_save=True, table_dtype="float32")).eval()
    model.save_pretrained(tmp_path / "adapter")
    return model


@pytest.mark.parametrize(
    ("auto", "name", "task"),
    [
        (AutoPeftModelForSequenceClassification, "bert", "SEQ_CLS"),
        (AutoPeftModelForCausalLM, "llama", "CAUSAL_LM"),
        (AutoPeftModelForFeatureExtraction, "mpnet", "FEATURE_EXTRACTION"),
    ],
)
def test_auto_classes_find_backbone_and_table(auto: type, name: str, task: str, tmp_path: Path) -> None:
    model = on_disk(name, task, tmp_path)
    assert isinstance(PeftConfig.from_pretrained(tmp_path / "adapter"), peft_aot.AoTConfig)
    loaded = auto.from_pretrained(tmp_path / "adapter")
    assert list(loaded.base_model.lookup.tables) == ["default"]
    batch = inputs(name, task)
    with torch.no_grad():
        torch.testing.assert_close(output(loaded, batch), output(model, batch), atol=1e-5, rtol=1e-5)


def test_auto_classes_take_the_options_of_methods(tmp_path: Path) -> None:
    on_disk("bert", "SEQ_CLS", tmp_path)
    auto, folder = AutoPeftModelForSequenceClassification, tmp_path / "adapter"
    loaded = auto.from_pretrained(folder, use_table=False, table_placement="ram", memory_budget=10**8)
    lookup = loaded.base_model.lookup
    assert lookup.tables == {} and (lookup.placement.name, lookup.placement.budget) == ("ram", 10**8)
    with pytest.raises(ValueError, match="expected a known table_placement, got 'rma'"):
        auto.from_pretrained(folder, table_placement="rma")
    again = PeftModel.from_pretrained(build("bert"), folder)
    assert list(again.base_model.lookup.tables) == ["default"], "options are for one call"
    with pytest.raises(TypeError, match="wrong_option"):
        auto.from_pretrained(folder, wrong_option=1)


def test_auto_model_without_a_task(tmp_path: Path) -> None:
    build("bert", "FEATURE_EXTRACTION").save_pretrained(tmp_path / "backbone")
    backbone = type(build("bert", "FEATURE_EXTRACTION")).from_pretrained(tmp_path / "backbone")
    fields = {"r": 4, "init_weights": False, "fuse_on_save": True, "table_dtype": "float32"}
    model = get_peft_model(backbone, peft_aot.AoTConfig(**fields)).eval()
    model.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModel.from_pretrained(tmp_path / "adapter")
    assert list(loaded.base_model.lookup.tables) == ["default"]
    with torch.no_grad():
        found, expected = loaded(**BATCH).last_hidden_state, model(**BATCH).last_hidden_state
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_the_table_is_for_inference_only(tmp_path: Path) -> None:
    on_disk("bert", "SEQ_CLS", tmp_path)
    for kwargs, used in (({}, True), ({"is_trainable": True}, False), ({"use_table": False}, False)):
        model = PeftModel.from_pretrained(build("bert"), tmp_path / "adapter", **kwargs)
        assert bool(model.base_model.lookup.tables) is used, kwargs
        model.load_adapter(tmp_path / "adapter", adapter_name="second", **kwargs)
        assert ("second" in model.base_model.lookup.tables) is used, kwargs
    trained = any(p.requires_grad for n, p in model.named_parameters() if "aot_rows.default" in n)
    assert not trained


def test_loading_into_an_adapter_again_replaces_its_table(tmp_path: Path) -> None:
    on_disk("bert", "SEQ_CLS", tmp_path)
    other = adapted("bert", seed=9)
    other.save_pretrained(tmp_path / "other")
    model = PeftModel.from_pretrained(build("bert"), tmp_path / "adapter")
    model.load_adapter(tmp_path / "other", adapter_name="default")
    assert not model.base_model.lookup.tables
    with torch.no_grad():
        torch.testing.assert_close(output(model, BATCH), output(other, BATCH))


def lora(seed: int = 0) -> PeftModel:
    torch.manual_seed(seed)
    settings = LoraConfig(task_type="SEQ_CLS", r=2, target_modules=["query"], init_lora_weights=False)
    return get_peft_model(build("bert"), settings).eval()


@pytest.mark.parametrize("call", ["positional", "keyword"])
def test_other_methods_save_and_load_as_ever(call: str, tmp_path: Path) -> None:
    model = lora()
    plain = inspect.unwrap(PeftModel.save_pretrained)
    plain(model, str(tmp_path / "plain"))
    if call == "positional":
        model.save_pretrained(str(tmp_path / "ours"), True, ["default"])
    else:
        model.save_pretrained(save_directory=tmp_path / "ours", safe_serialization=True)
    names = sorted(p.name for p in (tmp_path / "plain").iterdir())
    assert sorted(p.name for p in (tmp_path / "ours").iterdir()) == names
    for name in names:
        assert (tmp_path / "ours" / name).read_bytes() == (tmp_path / "plain" / name).read_bytes(), name
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path / "ours")
    loaded.load_adapter(tmp_path / "plain", "second", False)
    torch.testing.assert_close(output(loaded, BATCH), output(model, BATCH))
    loaded.set_adapter("second")
    torch.testing.assert_close(output(loaded, BATCH), output(model, BATCH))


def test_positional_arguments_of_save_pretrained(tmp_path: Path) -> None:
    model = adapted("bert")
    model.add_adapter("other", config("bert", "SEQ_CLS"))
    model.save_pretrained(tmp_path, True, ["other"])
    assert not (tmp_path / "adapter_config.json").exists()
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path / "other", "other")
    model.eval().set_adapter("other")
    torch.testing.assert_close(output(loaded, BATCH), output(model, BATCH))


def test_a_state_dict_can_be_passed_as_trainers_do(tmp_path: Path) -> None:
    model = adapted("bert")
    state = {name: value * 0 for name, value in model.state_dict().items()}
    model.save_pretrained(tmp_path, state_dict=state)
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path)
    assert all(not p.any() for n, p in loaded.named_parameters() if "aot_rows" in n)


def test_another_methods_adapter_cannot_join(tmp_path: Path) -> None:
    lora().save_pretrained(tmp_path)
    model = adapted("bert")
    with pytest.raises((TypeError, ValueError), match="AoTConfig|LORA|same type|not supported"):
        model.load_adapter(tmp_path, adapter_name="lora")
    assert isinstance(model.base_model, peft_aot.AoTModel) and isinstance(model, nn.Module)

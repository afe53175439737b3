"""Methods by name, and the PEFT configurations they write."""

from __future__ import annotations

import pytest
from peft import LoraConfig, PeftConfig

from peft_aot import AoTConfig, BitFitConfig, HiWiConfig, HoulsbyConfig, PaFiConfig
from peft_aot.method import AdapterRequest, configure
from peft_aot.methods import get_method, method_names

REQUEST = AdapterRequest("bert", "classification", ("classifier", "bert.pooler"), rank=7, virtual_tokens=3)


def config_of(name: str, request: AdapterRequest = REQUEST) -> PeftConfig:
    config = configure(get_method(name), request)
    assert config is not None
    return config


def test_the_methods_are_those_promised() -> None:
    peft = ("lora", "ia3", "prompt", "prefix")
    controls = ("aot-constant", "aot-layer0", "aot-random", "aot-hidden")
    assert method_names() == ("aot", "aot-kron", *peft, "bitfit", "houlsby", "pafi", "hiwi", "head", "full", *controls)


@pytest.mark.parametrize("name", [name for name in method_names() if name != "full"])
def test_every_method_trains_what_the_checkpoint_lacks(name: str) -> None:
    config = config_of(name)
    assert config.task_type == "SEQ_CLS"
    assert config.modules_to_save == ["classifier", "bert.pooler"]


def test_ranks_and_reparametrizations() -> None:
    fc, kron, lora = config_of("aot"), config_of("aot-kron"), config_of("lora")
    assert isinstance(fc, AoTConfig)
    assert isinstance(kron, AoTConfig)
    assert isinstance(lora, LoraConfig)
    assert (fc.reparam, kron.reparam) == ("fc", "kron")
    assert fc.r == kron.r == lora.r == lora.lora_alpha == 7
    houlsby, hiwi, pafi, bitfit = (config_of(name) for name in ("houlsby", "hiwi", "pafi", "bitfit"))
    assert isinstance(houlsby, HoulsbyConfig) and isinstance(hiwi, HiWiConfig)
    assert isinstance(pafi, PaFiConfig) and isinstance(bitfit, BitFitConfig)
    assert houlsby.r == hiwi.r == 7
    assert config_of("prompt").num_virtual_tokens == config_of("prefix").num_virtual_tokens == 3


def test_lora_targets_all_linear_layers_where_peft_has_no_default() -> None:
    assert config_of("lora").target_modules is None
    unknown = AdapterRequest("never-heard-of", "classification", ("classifier",))
    assert config_of("lora", unknown).target_modules == "all-linear"


def test_full_fine_tuning_has_no_adapter() -> None:
    assert configure(get_method("full"), REQUEST) is None


def test_refusals() -> None:
    with pytest.raises(ValueError, match="unknown method 'lra'; did you mean 'lora'\\?"):
        get_method("lra")
    with pytest.raises(ValueError, match="expected a rank of at least 1, got 0; pass a positive number"):
        configure(get_method("lora"), AdapterRequest("bert", "classification", (), rank=0))
    with pytest.raises(ValueError, match="expected at least 1 virtual token, got 0; pass a positive number"):
        configure(get_method("prefix"), AdapterRequest("bert", "classification", (), virtual_tokens=0))
    choice = AdapterRequest("bert", "multiple_choice", ("classifier",))
    with pytest.raises(
        ValueError, match="expected a method that PEFT supports for multiple choice, got 'prompt'; choose"
    ):
        configure(get_method("prompt"), choice)
    assert config_of("aot", choice).task_type is None


def test_controls_each_take_one_part_away() -> None:
    constant, layer0, random, hidden = (config_of(f"aot-{name}") for name in ("constant", "layer0", "random", "hidden"))
    assert isinstance(constant, AoTConfig) and constant.reparam == "constant"
    assert isinstance(layer0, AoTConfig) and layer0.layers_to_transform == [0]
    assert isinstance(random, AoTConfig) and random.bottleneck_input == "random"
    assert isinstance(hidden, AoTConfig) and hidden.bottleneck_input == "hidden"


def test_overrides_reach_the_configuration_and_unknown_ones_are_refused() -> None:
    request = AdapterRequest("bert", "classification", (), overrides={"lora_dropout": 0.5})
    config = config_of("lora", request)
    assert isinstance(config, LoraConfig) and config.lora_dropout == 0.5
    with pytest.raises(ValueError, match=r"unknown setting 'lora_dropout' of method 'aot'"):
        config_of("aot", request)


@pytest.mark.parametrize("name", method_names())
def test_every_method_says_what_a_comparison_shows_of_it(name: str) -> None:
    method = get_method(name)
    assert method.title and method.summary and method.space["learning_rate"]
    assert method.group in ("ours", "peft", "reference", "control")
    assert method.mixes in ("any heads", "adapters", "no")

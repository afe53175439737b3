"""The life of adapters: what stands in the backbone when, what a frozen adapter leaves behind, statuses and copies."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from torch import nn

from backbones import build, inputs, output
from peft_aot import HiWiConfig, HiWiLayer

TASK = "FEATURE_EXTRACTION"
BATCH = inputs("bert", TASK)
TARGETS = ["bias", "weight"]
for_targets = pytest.mark.parametrize("target", TARGETS)


def config(**fields: Any) -> HiWiConfig:
    return HiWiConfig(**{"task_type": TASK, "r": 8, "init_weights": False, **fields})


def trained(seed: int = 0, **fields: Any) -> PeftModel:
    backbone = build("bert", TASK)
    torch.manual_seed(seed)
    return get_peft_model(backbone, config(**fields)).eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two adapters of each target."""
    folder = tmp_path_factory.mktemp("saved")
    for target in TARGETS:
        for seed in range(2):
            trained(seed, target=target).save_pretrained(folder / f"{target}{seed}")
    return folder


def loaded(saved: Path, *names: str, **arguments: Any) -> PeftModel:
    model = PeftModel.from_pretrained(build("bert", TASK), saved / names[0], adapter_name=names[0], **arguments)
    for name in names[1:]:
        model.load_adapter(saved / name, name, **arguments)
    return model


def hooks(model: nn.Module) -> int:
    return sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules())


def hiwi_layers(model: nn.Module) -> list[HiWiLayer]:
    return [m for m in model.modules() if isinstance(m, HiWiLayer)]


def same_backbone(model: nn.Module) -> bool:
    bare = build("bert", TASK)
    pairs = zip(model.state_dict().values(), bare.state_dict().values(), strict=True)
    return str(model) == str(bare) and all(torch.equal(a, b) for a, b in pairs)


@for_targets
def test_a_frozen_adapter_leaves_nothing_in_the_forward_path(target: str, saved: Path) -> None:
    model = loaded(saved, f"{target}0", f"{target}1")
    bare = build("bert", TASK)
    expected = output(trained(1, target=target), BATCH)
    for name in (f"{target}1", f"{target}0", f"{target}1"):
        model.set_adapter(name)  # PEFT's call to train it
        assert hooks(model) == hooks(bare) == 0
        assert not [n for n, p in model.named_parameters() if p.requires_grad]
    assert torch.equal(output(model, BATCH), expected)
    changed = [n for n, p in bare.named_parameters() if not torch.equal(p, model.get_base_model().get_parameter(n))]
    assert changed == [f"encoder.layer.{i}.{p}.dense.{target}" for i in range(2) for p in ("intermediate", "output")]


@for_targets
def test_an_adapter_in_training_has_hooks_only_while_it_is_active(target: str, saved: Path) -> None:
    model = trained(target=target)
    assert hooks(model) == 2 * len(hiwi_layers(model)) == 8
    model.load_adapter(saved / f"{target}1", "frozen")
    assert hooks(model) == 8
    model.set_adapter("frozen")
    assert hooks(model) == 0
    model.set_adapter("default")
    assert hooks(model) == 8
    model.set_adapter("default", inference_mode=True)
    assert hooks(model) == 0


@for_targets
def test_zero_disabled_and_switched_adapters_bit_for_bit(target: str, saved: Path) -> None:
    with torch.no_grad():
        bare = output(build("bert", TASK), BATCH)
        zero = get_peft_model(build("bert", TASK), config(target=target, init_weights=True)).eval()
        assert torch.equal(output(zero, BATCH), bare)
        model = loaded(saved, f"{target}0", f"{target}1")
        first = output(model, BATCH)
        assert not torch.allclose(first, bare, atol=1e-3)
        with model.disable_adapter():
            assert torch.equal(output(model, BATCH), bare)
        assert torch.equal(output(model, BATCH), first)
        for _ in range(3):  # nothing may add up
            model.set_adapter(f"{target}1")
            assert not torch.allclose(output(model, BATCH), first, atol=1e-3)
            model.set_adapter(f"{target}0")
            assert torch.equal(output(model, BATCH), first)


@for_targets
@pytest.mark.parametrize("inference", [True, False])
def test_unload_is_exact(target: str, inference: bool, saved: Path) -> None:
    model = loaded(saved, f"{target}0", f"{target}1") if inference else trained(target=target)
    if not inference:
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
        output(model, BATCH).square().sum().backward()
        optimizer.step()
    output(model, BATCH)
    backbone = model.unload()
    assert same_backbone(backbone) and hooks(backbone) == 0


@for_targets
@pytest.mark.parametrize("inference", [True, False])
def test_merging(target: str, inference: bool, saved: Path) -> None:
    model = loaded(saved, f"{target}0") if inference else trained(target=target)
    with torch.no_grad():
        expected = output(model, BATCH)
        model.merge_adapter()
        assert hooks(model) == 0 and torch.equal(output(model, BATCH), expected)
        model.unmerge_adapter()
        assert torch.equal(output(model, BATCH), expected)
        merged = model.merge_and_unload(safe_merge=True)
        assert torch.equal(output(merged, BATCH), expected)
    assert not hiwi_layers(merged) and hooks(merged) == 0 and str(merged) == str(build("bert", TASK))


@for_targets
def test_status_and_counts(target: str, saved: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = trained(target=target)
    model.load_adapter(saved / f"{target}1", "frozen")
    status = model.get_model_status()
    assert status.peft_types == {"default": "HIWI", "frozen": "HIWI"}
    assert status.requires_grad == {"default": True, "frozen": False}
    assert status.available_adapters == ["default", "frozen"] and status.active_adapters == ["default"]
    assert status.devices == {"default": ["cpu"], "frozen": ["cpu"]} and status.num_adapter_layers == 4
    layer = model.get_layer_status()[0]
    assert layer.name == "model.encoder.layer.0.intermediate.dense.hiwi_layer" and layer.module_type == "HiWiLayer"
    assert layer.requires_grad == {"default": True, "frozen": False}
    widths = {"bias": [64, 32], "weight": [32, 64]}[target]
    model.print_trainable_parameters()
    expected = 2 * sum(2 * 8 * width for width in widths)
    assert f"trainable params: {expected:,}" in capsys.readouterr().out
    model.set_adapter("frozen")
    assert model.get_model_status().requires_grad == {"default": False, "frozen": False}
    model.print_trainable_parameters()
    assert "trainable params: 0 " in capsys.readouterr().out


@for_targets
def test_training_an_adapter_without_network_is_refused(target: str, saved: Path) -> None:
    model = loaded(saved, f"{target}0")
    with pytest.raises(ValueError, match=f"network to train, got '{target}0', which was loaded for inference; call"):
        model.set_requires_grad(f"{target}0")
    model.set_requires_grad(f"{target}0", False)
    assert not [n for n, p in model.named_parameters() if p.requires_grad]


@for_targets
def test_delete_adapter(target: str, saved: Path) -> None:
    model = trained(target=target)
    with torch.no_grad():
        first = output(model, BATCH)
        model.load_adapter(saved / f"{target}1", "frozen")
        model.set_adapter("frozen")
        second = output(model, BATCH)
        model.delete_adapter("default")
        assert torch.equal(output(model, BATCH), second)
        assert not [n for n, _ in model.named_parameters() if ".default" in n]
        assert all(layer.targets == {"frozen": target} for layer in hiwi_layers(model))
        model.add_adapter("default", config(target=target))
        model.load_adapter(saved / f"{target}0", "again")
        with pytest.warns(UserWarning, match="was active which is now deleted. Setting active adapter to again"):
            model.delete_adapter("frozen")
        assert torch.equal(output(model, BATCH), first)
        model.delete_adapter("default")
        model.base_model.delete_adapter("again")
    backbone = model.base_model.model
    assert all(torch.equal(p, backbone.get_parameter(n)) for n, p in build("bert", TASK).named_parameters())
    assert not [n for n, _ in backbone.named_parameters() if "hiwi" in n]


@for_targets
@pytest.mark.parametrize("inference", [True, False])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_independent(target: str, inference: bool, copied: Any, saved: Path) -> None:
    model = loaded(saved, f"{target}0") if inference else trained(target=target)
    expected = output(model, BATCH)
    twin = copied(model)
    assert torch.equal(output(twin, BATCH), expected)
    if inference:
        twin.load_adapter(saved / f"{target}1", "other")
        twin.set_adapter("other")
    else:
        output(twin, BATCH).square().sum().backward()
        torch.optim.SGD([p for p in twin.parameters() if p.requires_grad], lr=0.1).step()
        assert all(p.grad is None for p in model.parameters())
    assert not torch.allclose(output(twin, BATCH), expected, atol=1e-3)
    assert torch.equal(output(model, BATCH), expected)
    assert same_backbone(twin.unload())
    assert torch.equal(output(model, BATCH), expected)


def test_biases_and_weights_in_one_model(saved: Path) -> None:
    model = loaded(saved, "bias0", "weight0", "bias1", "weight1")
    for name in ("weight1", "bias0", "weight0", "bias1"):
        model.set_adapter(name)
        assert torch.equal(output(model, BATCH), output(trained(int(name[-1]), target=name[:-1]), BATCH)), name
    assert all(layer.targets[name] == name[:-1] for layer in hiwi_layers(model) for name in layer.targets)
    assert same_backbone(model.unload())


def test_biases_mix(saved: Path) -> None:
    model = loaded(saved, "bias0", "bias1")
    model.add_adapter("new", config(r=4))
    model.eval()
    names = ["bias1", "__base__", "new"]
    with torch.no_grad():
        mixed = output(model, BATCH, adapter_names=names)
        for i, name in enumerate(names):
            with model.disable_adapter():
                expected = output(model, BATCH)
            if name != "__base__":
                model.set_adapter(name)
                expected = output(model, BATCH)
            torch.testing.assert_close(mixed[i], expected[i], atol=1e-5, rtol=1e-5)
            assert not torch.allclose(mixed[i - 1], expected[i - 1], atol=1e-3)


def test_weights_do_not_mix(saved: Path) -> None:
    model = loaded(saved, "bias0", "weight0")
    before = output(model, BATCH)
    with pytest.raises(
        ValueError, match="'weight0' with target='weight' among adapter_names: .*; run it alone with set_adapter"
    ):
        output(model, BATCH, adapter_names=["bias0", "weight0", "__base__"])
    assert hooks(model) == 0 and torch.equal(output(model, BATCH), before)
    names = ["bias0", "__base__", "bias0"]
    mixed = output(model, BATCH, adapter_names=names)
    torch.testing.assert_close(mixed[0], before[0], atol=1e-5, rtol=1e-5)
    model.set_adapter("weight0")
    alone = output(model, BATCH)
    with pytest.raises(
        ValueError, match="'weight0' with target='weight' active: .*; activate one of biases with set_adapter"
    ):
        output(model, BATCH, adapter_names=names)
    assert torch.equal(output(model, BATCH), alone)
    model.set_adapter("bias0")
    model.merge_adapter(["weight0"])
    with pytest.raises(ValueError, match="'weight0' with target='weight' active"):
        output(model, BATCH, adapter_names=names)
    model.unmerge_adapter()
    assert torch.equal(output(model, BATCH, adapter_names=names), mixed)
    with pytest.raises(TypeError, match="expected adapter_names to be a list of str"):
        output(model, BATCH, adapter_names=3)


def test_biases_mix_beside_weights_of_modules_without_a_bias(saved: Path) -> None:
    backbone = build("bert", TASK)
    query = backbone.encoder.layer[0].attention.self.query
    query.bias = None
    model = get_peft_model(backbone, config(target="weight", target_modules=["query"]), adapter_name="weights")
    model.load_adapter(saved / "bias0", "biases")
    model.set_adapter("biases")
    with torch.no_grad():
        expected = output(model.eval(), BATCH)
        mixed = output(model, BATCH, adapter_names=["biases", "__base__", "biases"])
    torch.testing.assert_close(mixed[[0, 2]], expected[[0, 2]], atol=1e-5, rtol=1e-5)


def test_another_method_s_configuration_is_refused() -> None:
    from peft_aot import BitFitConfig

    model = trained()
    with pytest.raises(ValueError, match="different peft types"):
        model.add_adapter("other", BitFitConfig())
    layer = hiwi_layers(model)[0]
    with pytest.raises(TypeError, match="expected a HiWiConfig, got BitFitConfig; do not mix methods in one model"):
        layer.update_layer("other", BitFitConfig())

"""PaFi: the naive reference, memory, the mask of a backbone and of another one, sums, what is saved, and refusals."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from backbones import CONFIGS, DECODERS, ENCODER_DECODERS, build, inputs, output
from models import adapted, config
from peft_aot.backbone import find_blocks
from peft_aot.pafi import PaFiConfig, PaFiLayer
from peft_aot.sublayers import is_linear
from written import check_gradients, naive_output

BATCH = inputs("bert", "SEQ_CLS")


def task_of(name: str) -> str:
    return "CAUSAL_LM" if name in DECODERS else "SEQ_2_SEQ_LM" if name in ENCODER_DECODERS else "SEQ_CLS"


def naive_mask(model: nn.Module, sparsity: float) -> dict[str, torch.Tensor]:
    """The k smallest weights and biases of the blocks' linear layers, by sorting all of them; flat indices by name."""
    names = []
    for block in find_blocks(model):
        for path, module in model.get_submodule(block.name).named_modules():
            if is_linear(module):
                names += [f"{block.name}.{path}.{kind}" for kind, _ in module.named_parameters(recurse=False)]
    parameters = dict(model.named_parameters())
    magnitudes = torch.cat([parameters[name].detach().abs().flatten() for name in names])
    order = magnitudes.sort(stable=True).indices[: int(sparsity * len(magnitudes))]
    chosen, start = {}, 0
    for name in names:
        size = parameters[name].numel()
        inside = order[(order >= start) & (order < start + size)] - start
        if len(inside):
            chosen[name] = inside.sort().values
        start += size
    return chosen


@pytest.mark.parametrize("name", CONFIGS)
def test_output_and_gradients_equal_the_naive_reference(name: str) -> None:
    task = task_of(name)
    bare, batch = build(name, task).double(), inputs(name, task)
    model = get_peft_model(build(name, task).double(), config(name, task, "pafi")).eval()
    kwargs = {} if task == "SEQ_CLS" else {"use_cache": False}

    def naive() -> torch.Tensor:
        deltas = {n: p for n, p in model.named_parameters() if "pafi_delta" in n}
        changed = {}
        parameters = dict(bare.named_parameters())
        mask = naive_mask(bare, 0.3)
        for key, delta in deltas.items():
            owner = key.removeprefix("base_model.model.").removesuffix(".pafi_layer.pafi_delta.default")
            for kind in ("weight", "bias"):
                indices = mask.pop(f"{owner}.{kind}", None)
                if indices is not None:
                    part, delta = delta[: len(indices)], delta[len(indices) :]
                    original = parameters[f"{owner}.{kind}"].detach()
                    added = torch.zeros(original.numel(), dtype=original.dtype).index_add(0, indices, part)
                    changed[f"{owner}.{kind}"] = original + added.view_as(original)
            assert not len(delta)
        assert not mask
        return naive_output(bare, model, changed, batch, **kwargs)

    check_gradients(model, batch, naive, **kwargs)


@pytest.mark.parametrize("scope", ["global", "per_tensor"])
def test_exactly_k_entries_are_trained(scope: str) -> None:
    model = get_peft_model(build("bert"), config("bert", "SEQ_CLS", "pafi", sparsity=0.01, scope=scope))
    sizes = [p.numel() for m in naive_linears(build("bert")) for p in m.parameters()]
    expected = int(0.01 * sum(sizes)) if scope == "global" else sum(int(0.01 * size) for size in sizes)
    trained = sum(p.numel() for n, p in model.named_parameters() if "pafi_delta" in n)
    assert trained == expected == model.peft_config["default"].num_values


def naive_linears(model: nn.Module) -> list[nn.Module]:
    return [m for b in find_blocks(model) for m in model.get_submodule(b.name).modules() if is_linear(m)]


class _Largest(TorchDispatchMode):
    """The largest tensor that any operation makes, of those that are not parameters."""

    size = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in result if isinstance(result, (tuple, list)) else [result]:
            if isinstance(value, torch.Tensor) and "view" not in func.__name__ and func.__name__ != "detach":
                shares = any(isinstance(a, torch.Tensor) and a.data_ptr() == value.data_ptr() for a in args)
                self.size = self.size if shares else max(self.size, value.numel())
        return result


def test_a_step_makes_no_tensor_of_a_weights_size() -> None:
    """Wide layers, few positions: whatever has the size of a weight would be by far the largest tensor."""

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.Linear(512, 512) for _ in range(2)])

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            for layer in self.layers:
                x = layer(x).relu()
            return x

    model = get_peft_model(Net(), PaFiConfig(target_modules=["0", "1"], sparsity=0.005))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    x = torch.randn(4, 512, requires_grad=True)
    for _ in range(2):
        with _Largest() as seen:
            model(x).square().sum().backward()
            optimizer.step()
        assert 512 * 4 <= seen.size < 512 * 512 / 8, seen.size
    state = sum(t.numel() for entry in optimizer.state.values() for t in entry.values())
    assert state < 3 * int(0.005 * 2 * 512 * 513) + 10


def test_training_writes_and_learns() -> None:
    model = get_peft_model(build("bert"), config("bert", "SEQ_CLS", "pafi", init_weights=True))
    labels = torch.tensor([0, 0, 0])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=0.05)
    losses = []
    for _ in range(30):
        loss = model(**BATCH, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss))
    assert losses[-1] < losses[0] / 2
    mask, changed = naive_mask(build("bert"), 0.3), 0
    for name, now in model.eval().base_model.model.named_parameters():
        was = dict(build("bert").named_parameters()).get(name)
        if was is not None and not torch.equal(now, was):
            entries = (now != was).flatten().nonzero().flatten()
            assert torch.isin(entries, mask[name]).all(), name
            changed += len(entries)
    assert changed > sum(len(indices) for indices in mask.values()) // 2


def test_switching_restores_and_writes() -> None:
    model = adapted("bert", method="pafi")
    torch.manual_seed(9)
    model.add_adapter("larger", config("bert", "SEQ_CLS", "pafi", sparsity=0.6))
    model.eval()
    bare = dict(build("bert").named_parameters())
    first = output(model, BATCH)
    model.set_adapter("larger")
    assert not torch.allclose(output(model, BATCH), first, atol=1e-3)
    model.set_adapter("default")
    assert torch.equal(output(model, BATCH), first)
    with model.disable_adapter():
        now = dict(model.base_model.model.named_parameters())
        assert all(torch.equal(now[name], value) for name, value in bare.items() if "classifier" not in name)


def test_a_mask_is_chosen_among_the_backbones_own_weights() -> None:
    model = adapted("bert", method="pafi")  # large changes stand in the weights now
    model.add_adapter("other", config("bert", "SEQ_CLS", "pafi", sparsity=0.1))
    fresh = get_peft_model(build("bert"), config("bert", "SEQ_CLS", "pafi", sparsity=0.1))
    assert model.peft_config["other"].mask_fingerprint == fresh.peft_config["default"].mask_fingerprint


def test_equal_settings_share_a_mask() -> None:
    model = adapted("bert", method="pafi")
    model.add_adapter("other", config("bert", "SEQ_CLS", "pafi"))
    for layer in model.base_model.layers():
        assert layer.pafi_masks["default"].weight is layer.pafi_masks["other"].weight


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_what_is_saved(dtype: str, tmp_path: Path) -> None:
    model = adapted("bert", method="pafi", save_dtype=dtype)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    values = {n: t for n, t in saved.items() if "classifier" not in n}
    assert {str(t.dtype) for t in values.values()} == {f"torch.{dtype}"}
    settings = json.loads((tmp_path / "adapter_config.json").read_text())
    assert settings["num_values"] == sum(t.numel() for t in values.values())
    mask = naive_mask(build("bert"), 0.3)
    for name, tensor in values.items():
        owner = name.removeprefix("base_model.model.").removesuffix(".pafi_layer.pafi_delta")
        assert tensor.shape == (sum(len(mask.get(f"{owner}.{kind}", ())) for kind in ("weight", "bias")),)
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path)
    exact = {"float32": 0.0, "float16": 1e-3, "bfloat16": 1e-2}[dtype]
    torch.testing.assert_close(output(loaded, BATCH), output(model, BATCH), atol=exact, rtol=0)
    assert all(p.dtype == torch.float32 for n, p in loaded.named_parameters() if "pafi" in n)


def test_the_fingerprint_of_a_known_backbone(tmp_path: Path) -> None:
    # a golden value: whoever changes how masks are chosen or hashed makes every saved adapter unreadable
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dense = nn.Linear(4, 3)
            with torch.no_grad():
                self.dense.weight.copy_(torch.arange(12).view(3, 4) % 5 - 2.0)
                self.dense.bias.copy_(torch.tensor([0.5, -0.25, 4.0]))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.dense(x)

    model = get_peft_model(Net(), PaFiConfig(target_modules=["dense"], sparsity=0.3))
    layer = model.base_model.layers()[0]
    assert layer.pafi_masks["default"].weight.tolist() == [2, 7]
    assert layer.pafi_masks["default"].bias.tolist() == [0, 1]
    assert model.peft_config["default"].mask_fingerprint == GOLDEN


GOLDEN = "18013eedc09639b7"


def test_the_adapter_of_another_backbone_is_refused(tmp_path: Path) -> None:
    model = adapted("bert", method="pafi")
    model.peft_config["default"].base_model_name_or_path = "that-one"
    model.save_pretrained(tmp_path)
    other = build("bert", seed=7)
    expected = copy.deepcopy(other.state_dict())
    with pytest.raises(ValueError, match="expected mask fingerprint [0-9a-f]{16} of that-one, got [0-9a-f]{16}: these"):
        PeftModel.from_pretrained(other, tmp_path)
    assert list(other.state_dict()) == list(expected)
    assert all(torch.equal(expected[n], t) for n, t in other.state_dict().items())
    with pytest.raises(ValueError, match="or the same in bfloat16 where the mask was chosen in float32"):
        PeftModel.from_pretrained(build("bert").bfloat16(), tmp_path)
    loaded = PeftModel.from_pretrained(build("bert"), tmp_path).bfloat16()  # the way that the message names
    found = output(loaded, BATCH)
    torch.testing.assert_close(found.float(), output(model, BATCH), atol=0.05, rtol=0)


def test_sums_of_adapters_with_one_mask() -> None:
    model = adapted("bert", method="pafi")
    torch.manual_seed(2)
    model.add_adapter("other", config("bert", "SEQ_CLS", "pafi"))
    model.eval()
    model.add_weighted_adapter(["default", "other"], [0.5, 0.5], "mean")
    model.add_weighted_adapter(["mean", "other"], [2.0, -1.0], "back")  # (a + b) - b
    for layer in model.base_model.layers():
        a, b, mean, back = (layer.pafi_delta[name] for name in ("default", "other", "mean", "back"))
        torch.testing.assert_close(mean, (a + b) / 2)
        torch.testing.assert_close(back, a, atol=1e-6, rtol=1e-6)
    assert model.active_adapters == ["default"]
    one, two = (get_peft_model(build("bert", "FEATURE_EXTRACTION"), PaFiConfig(sparsity=0.3)) for _ in range(2))
    one.base_model.add_weighted_adapter(["default"], [1.0], "twin")
    one.set_adapter("twin")
    torch.testing.assert_close(
        one.eval()(BATCH["input_ids"]).last_hidden_state, two.eval()(BATCH["input_ids"]).last_hidden_state
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((["default", "otter"], [1.0, 1.0], "sum"), r"unknown \['otter'\]; load them first"),
        ((["default"], [1.0, 2.0], "sum"), "expected one weight per adapter, got 1 adapters and 2 weights"),
        ((["default"], [1.0], "larger"), "expected a new adapter name, got 'larger', which exists"),
        ((["default"], [1.0], "sum", "svd"), "expected combination_type='linear', got 'svd'"),
        ((["default", "larger"], [1.0, 1.0], "sum"), r"expected adapters with one mask, got the fingerprints \["),
    ],
)
def test_sums_that_do_not_exist_are_refused(arguments: tuple[object, ...], message: str) -> None:
    model = adapted("bert", method="pafi")
    model.add_adapter("larger", config("bert", "SEQ_CLS", "pafi", sparsity=0.6))
    with pytest.raises(ValueError, match=message):
        model.add_weighted_adapter(*arguments)
    assert set(model.peft_config) == {"default", "larger"}


def test_mixed_batches_are_refused_with_the_reason() -> None:
    model = adapted("bert", method="pafi")
    expected = output(model, BATCH)
    with pytest.raises(ValueError, match="a weight is the same for all examples of a batch; run the adapters one at"):
        output(model, BATCH, adapter_names=["default", "__base__", "default"])
    assert torch.equal(output(model, BATCH), expected)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity": 0.0}, r"expected sparsity in \(0, 1\], got 0.0; 0.005 trains"),
        ({"sparsity": 1.5}, r"expected sparsity in \(0, 1\], got 1.5"),
        ({"scope": "globl"}, "expected a known scope, got 'globl'; .*global"),
        ({"save_dtype": "float61"}, "expected a known save_dtype, got 'float61'; .*float16"),
    ],
)
def test_bad_settings_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        PaFiConfig(**fields)


def test_an_empty_mask_is_refused() -> None:
    backbone = build("bert")
    before = str(backbone)
    with pytest.raises(ValueError, match="the mask would be empty; raise sparsity or target more modules"):
        get_peft_model(backbone, PaFiConfig(task_type="SEQ_CLS", sparsity=1e-7))
    assert str(backbone) == before


def test_quantized_weights_are_refused_at_once() -> None:
    backbone = build("bert")
    dense = backbone.bert.encoder.layer[1].intermediate.dense
    dense.weight = nn.Parameter(torch.zeros(64, 32, dtype=torch.int8), requires_grad=False)
    message = r"expected target_modules that PaFi can adapt, got bert.encoder.layer.1.intermediate.dense \(whose weight"
    with pytest.raises(ValueError, match=message + r" is int8: quantized weights have no magnitudes"):
        get_peft_model(backbone, PaFiConfig(task_type="SEQ_CLS"))
    assert not [m for m in backbone.modules() if isinstance(m, PaFiLayer)]
    get_peft_model(backbone, PaFiConfig(task_type="SEQ_CLS", exclude_modules=["layer.1.intermediate.dense"]))


def test_tied_weights_are_refused() -> None:
    backbone = build("bert")
    layers = backbone.bert.encoder.layer
    layers[1].attention.self.key.weight = layers[0].attention.self.key.weight
    message = r"expected a weight that no other module has, got one of .*layer.0.attention.self.key and .*layer.1.*tied"
    with pytest.raises(ValueError, match=message):
        get_peft_model(backbone, PaFiConfig(task_type="SEQ_CLS"))
    get_peft_model(backbone, PaFiConfig(task_type="SEQ_CLS", exclude_modules=["self.key"]))


def test_another_masks_values_do_not_go_into_an_adapter(tmp_path: Path) -> None:
    adapted("bert", method="pafi", sparsity=0.1).save_pretrained(tmp_path)
    model = adapted("bert", method="pafi")
    expected = output(model, BATCH)
    with pytest.raises(ValueError, match="expected sparsity=0.3 as in the adapter 'default'.*got sparsity=0.1"):
        model.load_adapter(tmp_path, adapter_name="default")
    assert torch.equal(output(model, BATCH), expected)


def test_entries_follow_the_model_to_another_type_and_device() -> None:
    model = adapted("bert", method="pafi").double()
    expected = output(model, BATCH)
    torch.testing.assert_close(expected.float(), output(adapted("bert", method="pafi"), BATCH), atol=1e-5, rtol=1e-5)
    meta = copy.deepcopy(model).to("meta")
    assert all(mask.weight.is_meta for layer in meta.base_model.layers() for mask in layer.pafi_masks.values())


@pytest.mark.slow
def test_half_a_percent_of_mpnet_base_is_less_than_a_megabyte(tmp_path: Path) -> None:
    from transformers import MPNetConfig, MPNetModel

    torch.manual_seed(0)
    model = get_peft_model(MPNetModel(MPNetConfig()), PaFiConfig(sparsity=0.005, save_dtype="float16"))
    assert model.peft_config["default"].num_values == 425_088
    model.save_pretrained(tmp_path)
    assert 850_000 < (tmp_path / "adapter_model.safetensors").stat().st_size < 1_000_000

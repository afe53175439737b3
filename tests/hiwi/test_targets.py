"""Which modules are adapted by default, and what is refused at once, with the reason and what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as t
from peft import PeftModel, get_peft_model
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn

from backbones import SIZES, VOCAB, build, inputs, output
from peft_aot import HiWiConfig, HiWiLayer

TASK = "FEATURE_EXTRACTION"
FEED_FORWARD = {
    "bert": ("encoder.layer", ["intermediate.dense", "output.dense"]),
    "distilbert": ("transformer.layer", ["ffn.lin1", "ffn.lin2"]),
    "gpt2": ("h", ["mlp.c_fc", "mlp.c_proj"]),
    "llama": ("layers", ["mlp.down_proj", "mlp.gate_proj", "mlp.up_proj"]),
    "modernbert": ("layers", ["mlp.Wi", "mlp.Wo"]),
}


def adapt(backbone: nn.Module, **fields: Any) -> PeftModel:
    return get_peft_model(backbone, HiWiConfig(**fields))


def adapted_names(model: PeftModel) -> list[str]:
    modules = model.get_base_model().named_modules()
    return sorted(name.removesuffix(".hiwi_layer") for name, module in modules if isinstance(module, HiWiLayer))


@pytest.mark.parametrize("name", FEED_FORWARD)
def test_default_is_both_projections_of_every_feed_forward_network(name: str) -> None:
    blocks, parts = FEED_FORWARD[name]
    target = "weight" if name in ("llama", "modernbert") else "bias"
    expected = sorted(f"{blocks}.{i}.{part}" for i in range(2) for part in parts)
    assert adapted_names(adapt(build(name, TASK), target=target)) == expected
    assert adapted_names(adapt(build(name, TASK), target="weight")) == expected


def test_default_covers_encoder_and_decoder() -> None:
    found = adapted_names(adapt(build("bart", TASK)))
    expected = [f"{s}.layers.{i}.{p}" for s in ("decoder", "encoder") for i in range(2) for p in ("fc1", "fc2")]
    assert found == expected


def test_target_modules_override_the_default() -> None:
    names = [f"encoder.layer.{i}.attention.{p}" for i in range(2) for p in ("output.LayerNorm", "self.query")]
    pattern = r".*attention\.(self\.query|output\.LayerNorm)"
    assert adapted_names(adapt(build("bert", TASK), target_modules=pattern)) == names
    only = adapt(build("bert", TASK), target="weight", target_modules=["query", "key"], exclude_modules=["key"])
    assert adapted_names(only) == [f"encoder.layer.{i}.attention.self.query" for i in range(2)]


@pytest.mark.parametrize("name", ["llama", "t5", "modernbert"])
def test_absent_biases_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="expected biases that are not zero, got .* more: fed with zeros") as error:
        adapt(build(name, TASK))
    assert "use HiWiConfig(target='weight'), or name other target_modules" in str(error.value)
    first = {"llama": "layers.0.mlp.gate_proj", "t5": "encoder.block.0.layer.1.DenseReluDense.wi"}
    assert f"{first.get(name, 'layers.0.mlp.Wi')} (no bias)" in str(error.value)


def test_zero_biases_are_refused_unless_nothing_is_trained() -> None:
    backbone = build("bert", TASK)
    backbone.encoder.layer[1].output.dense.bias.data.zero_()
    shown = str(backbone)
    with pytest.raises(ValueError, match=r"got encoder.layer.1.output.dense \(all zero\): fed with zeros"):
        adapt(backbone)
    with pytest.raises(ValueError, match=r"got encoder.layer.1.output.dense \(all zero\)"):
        adapt(backbone, target_modules=["output.dense"])
    assert str(backbone) == shown and all(p.requires_grad for p in backbone.parameters()), "nothing is changed"
    assert len(adapted_names(adapt(backbone, exclude_modules=["encoder.layer.1.output.dense"]))) == 3
    backbone = build("bert", TASK)
    backbone.encoder.layer[1].output.dense.bias.data.zero_()
    assert len(adapted_names(adapt(backbone, inference_mode=True))) == 4


def test_a_bias_is_judged_without_the_adapters_that_are_there() -> None:
    backbone = build("bert", TASK)
    bias = backbone.encoder.layer[1].output.dense.bias
    original = bias.detach().clone()
    model = adapt(backbone)
    layer = backbone.encoder.layer[1].output.dense.hiwi_layer
    with torch.no_grad():  # an adapter that takes the whole bias away
        layer.network("default").up.copy_(-torch.outer(layer.network("default").hidden(original), original))
        layer.network("default").up.div_(layer.network("default").hidden(original).square().sum())
    output(model, inputs("bert", TASK))
    assert bias.abs().max() < 1e-6
    bias.data.zero_()
    model.add_adapter("other", HiWiConfig())
    model.set_adapter("other")
    assert torch.equal(bias, original)


class Quantized(nn.Linear):
    """An integer weight with a scale, as libraries of quantization have."""

    def __init__(self, linear: nn.Linear, dtype: torch.dtype) -> None:
        super().__init__(linear.in_features, linear.out_features)
        self.bias = linear.bias
        self.scale = float(linear.weight.detach().abs().max()) / 100
        values = (linear.weight.detach() / self.scale).round()
        self.weight = nn.Parameter((values + (128 if dtype == torch.uint8 else 0)).to(dtype), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shift = 128 if self.weight.dtype == torch.uint8 else 0
        return nn.functional.linear(x, (self.weight.to(x) - shift) * self.scale, self.bias)


def quantized(dtype: torch.dtype) -> nn.Module:
    backbone = build("bert", TASK)
    for block in backbone.encoder.layer:
        block.intermediate.dense = Quantized(block.intermediate.dense, dtype)
    return backbone


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantized_weights_are_refused(dtype: torch.dtype) -> None:
    with pytest.raises(ValueError, match="expected floating-point weights, got .*: quantized weights cannot") as error:
        adapt(quantized(dtype), target="weight")
    assert f"encoder.layer.0.intermediate.dense ({dtype})" in str(error.value)
    assert "use HiWiConfig(target='bias'), or load the backbone without quantization" in str(error.value)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8])
def test_biases_of_quantized_modules_work(dtype: torch.dtype) -> None:
    batch = inputs("bert", TASK)
    model = adapt(quantized(dtype), r=8, init_weights=False).eval()
    found = output(model, batch)
    found.square().sum().backward()
    network = model.get_base_model().encoder.layer[0].intermediate.dense.hiwi_layer.network("default")
    assert network.up.grad.abs().max() > 0
    bare = quantized(dtype)
    for i, block in enumerate(bare.encoder.layer):
        for part in ("intermediate", "output"):
            bias = block.get_submodule(part).dense.bias
            layer = model.get_base_model().encoder.layer[i].get_submodule(part).dense.hiwi_layer
            bias.data += layer.network("default")(bias.data)
    torch.testing.assert_close(found, output(bare, batch))


def test_tied_weights_are_refused() -> None:
    backbone = build("bert", TASK)
    first, second = (block.intermediate.dense for block in backbone.encoder.layer)
    second.weight = first.weight
    with pytest.raises(ValueError, match="expected a weight that no other module has, got one of") as error:
        adapt(backbone, target="weight")
    assert "encoder.layer.0.intermediate.dense and encoder.layer.1.intermediate.dense (tied" in str(error.value)
    assert "leave encoder.layer.0.intermediate.dense out with exclude_modules" in str(error.value)
    assert len(adapted_names(adapt(backbone))) == 4, "their biases are their own"


def test_a_weight_tied_to_a_module_that_is_not_adapted_is_refused() -> None:
    backbone = build("gpt2", "CAUSAL_LM")
    assert backbone.lm_head.weight is backbone.transformer.wte.weight
    with pytest.raises(ValueError, match="got one of transformer.wte and lm_head"):
        adapt(backbone, target="weight", target_modules=["lm_head"])


@pytest.mark.parametrize("target", ["bias", "weight"])
def test_offloaded_parameters_are_refused(target: str) -> None:
    backbone = build("bert", TASK)
    backbone.encoder.layer[1].output.dense.to("meta")
    with pytest.raises(ValueError, match=f"got an offloaded {target} in encoder.layer.1.output.dense, which cannot"):
        adapt(backbone, target=target)


def test_experts_are_left_to_the_user() -> None:
    config = t.MixtralConfig(
        **{**SIZES, "vocab_size": VOCAB, "num_key_value_heads": 2, "num_local_experts": 2, "num_experts_per_tok": 1}
    )
    backbone = t.AutoModel.from_config(config)
    with pytest.raises(ValueError, match="got none that can be told in 2 of 2 blocks of MixtralModel") as error:
        adapt(backbone, target="weight")
    assert "name the modules to adapt in target_modules" in str(error.value)
    assert len(adapted_names(adapt(backbone, target="weight", target_modules=["o_proj"]))) == 2


def test_modules_that_cannot_be_adapted_are_refused() -> None:
    with pytest.raises(NoMatchingPeftModuleError, match="that HiWi can adapt, got none of"):
        adapt(build("bert", TASK), target="weight", target_modules=["LayerNorm"])
    backbone = build("bert", TASK)
    dense = backbone.encoder.layer[0].intermediate.dense
    dense.weight = nn.Parameter(torch.randn(32, 64).T)
    with pytest.raises(ValueError, match="got encoder.layer.0.intermediate.dense .whose weight is not contiguous"):
        adapt(backbone, target="weight")
    query = backbone.encoder.layer[0].attention.self.query
    query.weight = nn.Parameter(torch.randn(32, 32).T)
    with pytest.raises(ValueError, match="got encoder.layer.0.attention.self.query .whose weight is not contiguous"):
        adapt(backbone, target="weight", target_modules=["query"])
    nn.utils.parametrizations.weight_norm(query)
    with pytest.raises(ValueError, match="got encoder.layer.0.attention.self.query .whose weight is computed or"):
        adapt(backbone, target="weight", target_modules=["query"])
    with pytest.raises(ValueError, match="that HiWi can adapt, got conv .Conv1d, whose bias is not known"):
        adapt(nn.ModuleDict({"conv": nn.Conv1d(2, 2, 1), "linear": nn.Linear(2, 2)}), target_modules=["conv"])


def test_any_module_works_when_it_is_named() -> None:
    model = adapt(nn.Sequential(nn.Linear(3, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)), target_modules=["0", "2"])
    model(torch.randn(5, 3)).sum().backward()
    assert sum(p.grad is not None for p in model.parameters()) == 4

"""After which projections adapters go, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as t
from peft import get_peft_model
from torch import nn

from backbones import CONFIGS, DECODER, VOCAB, build, inputs, output
from models import adapted, config
from peft_aot import HoulsbyConfig, HoulsbyLayer

BERT = [f"{block}.{part}" for block in (0, 1) for part in ("attention.output.dense", "output.dense")]
ENDS = {  # of the last block, written down from the architectures
    "bert": ["attention.output.dense", "output.dense"],
    "roberta": ["attention.output.dense", "output.dense"],
    "deberta_v2": ["attention.output.dense", "output.dense"],
    "modernbert": ["attn.Wo", "mlp.Wo"],
    "distilbert": ["attention.out_lin", "ffn.lin2"],
    "electra": ["attention.output.dense", "output.dense"],
    "mpnet": ["attention.attn.o", "output.dense"],
    "gpt2": ["attn.c_proj", "mlp.c_proj"],
    "llama": ["self_attn.o_proj", "mlp.down_proj"],
    "qwen3": ["self_attn.o_proj", "mlp.down_proj"],
    "t5": ["layer.0.SelfAttention.o", "layer.1.EncDecAttention.o", "layer.2.DenseReluDense.wo"],
    "bart": ["self_attn.out_proj", "encoder_attn.out_proj", "fc2"],
}


def names(model: nn.Module) -> list[str]:
    found = [n for n, m in model.base_model.model.named_modules() if isinstance(m, HoulsbyLayer)]
    return [name.removesuffix(".houlsby_layer") for name in found]


@pytest.mark.parametrize("name", CONFIGS)
def test_after_every_sublayer(name: str) -> None:
    found = names(get_peft_model(build(name, "FEATURE_EXTRACTION"), config(name, "FEATURE_EXTRACTION", "houlsby")))
    assert len(found) == (10 if name in ("t5", "bart") else 4)
    block = found[-1].removesuffix(ENDS[name][-1])
    assert [n for n in found if n.startswith(block)] == [f"{block}{end}" for end in ENDS[name]]


def where(name: str = "bert", **fields: Any) -> list[str]:
    """Names, below the list of blocks, of what is adapted."""
    found = names(get_peft_model(build(name), config(name, "SEQ_CLS", "houlsby", **fields)))
    return [n.removeprefix("bert.encoder.layer.") for n in found]


def test_placement() -> None:
    assert where() == BERT
    assert where(placement="attention") == [BERT[0], BERT[2]]
    assert where(placement="ffn") == [BERT[1], BERT[3]]
    assert where(exclude_modules=["attention.output.dense"]) == [BERT[1], BERT[3]]


def test_blocks_by_number() -> None:
    assert where(layers_to_transform=1) == where(layers_to_transform=[1]) == BERT[2:]
    assert where(layers_to_transform=[1, 0]) == BERT
    # the blocks of an encoder and of its decoder are counted separately
    found = names(get_peft_model(build("t5", "SEQ_2_SEQ_LM"), HoulsbyConfig(layers_to_transform=[1], placement="ffn")))
    assert found == ["encoder.block.1.layer.1.DenseReluDense.wo", "decoder.block.1.layer.2.DenseReluDense.wo"]


def test_modules_by_name() -> None:
    assert where(target_modules=["0.intermediate.dense"]) == ["0.intermediate.dense"]
    assert where(target_modules=r".*layer\.1\.output\.dense") == [BERT[3]]
    layer = get_peft_model(build("gpt2"), HoulsbyConfig(target_modules=["c_fc"], r=3)).base_model.layers()[0]
    assert layer.houlsby_up["default"].weight.shape == (128, 3), "a Conv1D, to the size of its output"


def test_adapters_at_other_places_in_one_model() -> None:
    model = adapted("bert", "FEATURE_EXTRACTION", method="houlsby", placement="attention")
    torch.manual_seed(1)
    model.add_adapter("other", config("bert", "FEATURE_EXTRACTION", "houlsby", placement="ffn", r=2))
    model.eval()
    batch = inputs("bert", "FEATURE_EXTRACTION")
    alone = []
    for name in ("default", "other"):
        model.set_adapter(name)
        hooked = [n for n, m in model.base_model.model.named_modules() if m._forward_hooks]
        assert hooked == [n for n in names(model) if ("attention" in n) == (name == "default")]
        alone.append(output(model, batch))
    mixed = output(model, batch, adapter_names=["default", "other", "default"])
    torch.testing.assert_close(mixed, torch.stack([alone[0][0], alone[1][1], alone[0][2]]), atol=1e-5, rtol=1e-5)


# what is refused, before anything has changed


def refused(backbone: nn.Module, message: str, **fields: Any) -> None:
    before = str(backbone)
    with pytest.raises(ValueError, match=message):
        get_peft_model(backbone, HoulsbyConfig(**fields))
    assert str(backbone) == before


def test_a_block_that_is_not_there() -> None:
    message = r"expected layers_to_transform among the blocks 0 to 1 of BertForSeq\w*, got \[2, 7\]; leave them out"
    refused(build("bert"), message, layers_to_transform=[0, 7, 2])


def mixtral() -> nn.Module:
    return t.MixtralModel(t.MixtralConfig(**DECODER, num_local_experts=2))


def test_experts_instead_of_a_feed_forward_network() -> None:
    message = (
        r"expected the last projections of all sub-layers of MixtralModel, got those of attention in 2 of 2 blocks "
        r"\(such as layers.0.self_attn.o_proj\) and of ffn in 0 of 2 blocks \(none in layers.0\); name the linear "
        r"layers to adapt in target_modules, or choose placement='attention'$"
    )
    refused(mixtral(), message)
    refused(mixtral(), r"got those of ffn in 0 of 2 blocks \(none in .*\); name .* in target_modules$", placement="ffn")
    expected = ["layers.0.self_attn.o_proj", "layers.1.self_attn.o_proj"]
    assert names(get_peft_model(mixtral(), HoulsbyConfig(placement="attention"))) == expected
    assert names(get_peft_model(mixtral(), HoulsbyConfig(target_modules=["o_proj"]))) == expected


def mamba() -> nn.Module:
    sizes = {"vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    return t.MambaModel(t.MambaConfig(**sizes))


def test_neither_attention_nor_a_feed_forward_network() -> None:
    message = (
        r"of MambaModel, got those of attention in 0 of 2 blocks \(none in layers.0\) and of ffn in 0 of 2 blocks "
        r"\(none in layers.0\); name the linear layers to adapt in target_modules$"
    )
    refused(mamba(), message)


def test_some_blocks_without_a_feed_forward_network() -> None:
    more = {"moe_intermediate_size": 16, "num_experts": 2, "num_experts_per_tok": 1}
    model = t.Qwen2MoeModel(
        t.Qwen2MoeConfig(**DECODER, **more, shared_expert_intermediate_size=64, mlp_only_layers=[0])
    )
    refused(model, r"ffn in 1 of 2 blocks \(such as layers.0.mlp.down_proj, none in layers.1\)")
    found = names(get_peft_model(model, HoulsbyConfig(layers_to_transform=[0])))
    assert found == ["layers.0.self_attn.o_proj", "layers.0.mlp.down_proj"]


def test_layers_whose_weight_is_used_without_calling_them() -> None:
    unused = r"expected target_modules that Houlsby can adapt, got layers.0.mixer.out_proj \(whose weight fused kernels"
    refused(mamba(), unused, target_modules=["out_proj"])
    assert len(names(get_peft_model(mamba(), HoulsbyConfig(target_modules=["in_proj"])))) == 2
    plain = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "head": nn.Linear(8, 2)})
    refused(plain, r"to leave a module that Houlsby can adapt, got none of 1 \(head", target_modules=["out_proj"])


def test_names_that_mean_no_linear_layer() -> None:
    message = r"target_modules=\['LayerNorm'\].* to leave a module that Houlsby can adapt, got none of 14"
    refused(build("bert"), message, target_modules=["LayerNorm"])


@pytest.mark.parametrize(("kind", "taken"), [("ffn", BERT[3]), ("attention", BERT[2])])
def test_a_projection_that_another_adapter_trains_whole(kind: str, taken: str) -> None:
    model = get_peft_model(build("bert"), config("bert", "SEQ_CLS", "houlsby", modules_to_save=[f"layer.{taken}"]))
    assert names(model) == [f"bert.encoder.layer.{name}" for name in BERT if name != taken]
    with pytest.raises(ValueError, match=rf"of {kind} in 1 of 2 blocks \(such as .*, none in bert.encoder.layer.1\)"):
        model.add_adapter("other", config("bert", "SEQ_CLS", "houlsby"))
    assert list(model.peft_config) == ["default"]

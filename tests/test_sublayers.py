"""Sub-layers of blocks: the table of what is found in which architecture, and that it runs as what it is taken for."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers as t
from torch import nn
from transformers.pytorch_utils import Conv1D

from backbones import CONFIGS, DECODER, ENCODER_DECODERS, TEXT, VOCAB, build, cases
from models import adapted
from peft_aot.backbone import find_blocks
from peft_aot.sublayers import Sublayers, is_linear, linear_features, sublayers

GROUPED = {**DECODER, "num_attention_heads": 4, "num_key_value_heads": 2}
SEQ2SEQ = {"vocab_size": VOCAB, "d_model": 32, "num_layers": 2, "num_heads": 2, "d_kv": 16, "d_ff": 64}
SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": VOCAB}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 1}

MORE: dict[str, Any] = {
    "deberta": lambda: t.DebertaConfig(**TEXT),
    "xlm_roberta": lambda: t.XLMRobertaConfig(**TEXT),
    "longformer": lambda: t.LongformerConfig(**TEXT, attention_window=4),
    "xlnet": lambda: t.XLNetConfig(vocab_size=VOCAB, d_model=32, n_layer=2, n_head=2, d_inner=64),
    "mobilebert": lambda: t.MobileBertConfig(**TEXT, embedding_size=16, intra_bottleneck_size=16),
    "bert_decoder": lambda: t.BertConfig(**TEXT, is_decoder=True, add_cross_attention=True),
    "mt5": lambda: t.MT5Config(**SEQ2SEQ),
    "gpt_neox": lambda: t.GPTNeoXConfig(**TEXT),
    "opt": lambda: t.OPTConfig(**SHAPE, ffn_dim=64, max_position_embeddings=64, word_embed_proj_dim=16),
    "bloom": lambda: t.BloomConfig(vocab_size=VOCAB, hidden_size=32, n_layer=2, n_head=2),
    "falcon": lambda: t.FalconConfig(**SHAPE),
    "phi": lambda: t.PhiConfig(**DECODER),
    "phi3": lambda: t.Phi3Config(**GROUPED, head_dim=4),  # queries, keys and values last, here D -> D altogether
    "mistral": lambda: t.MistralConfig(**GROUPED),
    "qwen2": lambda: t.Qwen2Config(**GROUPED),
    "gemma3": lambda: t.Gemma3TextConfig(**GROUPED, head_dim=16),  # queries D -> 2D
    "gemma3n": lambda: t.Gemma3nTextConfig(  # two bottlenecks beside the feed-forward network
        **{**GROUPED, "intermediate_size": [64, 64]},
        head_dim=8,
        vocab_size_per_layer_input=VOCAB,
        hidden_size_per_layer_input=8,
        laurel_rank=4,
        layer_types=["sliding_attention", "full_attention"],
        num_kv_shared_layers=0,
        activation_sparsity_pattern=[0.0, 0.0],
    ),
    "minimax": lambda: t.MiniMaxConfig(  # one of its attentions registers a gate last; experts
        **GROUPED, head_dim=8, num_local_experts=2, layer_types=["linear_attention", "full_attention"]
    ),
    "mixtral": lambda: t.MixtralConfig(**GROUPED, num_local_experts=2),
    "qwen2_moe": lambda: t.Qwen2MoeConfig(  # one expert is a plain network as wide as any
        **GROUPED, **EXPERTS, num_experts=2, shared_expert_intermediate_size=64, mlp_only_layers=[0]
    ),
    "switch": lambda: t.SwitchTransformersConfig(
        **SEQ2SEQ, num_decoder_layers=2, num_experts=2, num_sparse_encoder_layers=1, num_sparse_decoder_layers=1
    ),
    "jamba": lambda: t.JambaConfig(
        **GROUPED,
        attn_layer_period=2,
        attn_layer_offset=1,
        expert_layer_period=2,
        expert_layer_offset=1,
        num_experts=2,
        use_mamba_kernels=False,
        mamba_d_state=4,
        mamba_dt_rank=4,
    ),
    "mamba": lambda: t.MambaConfig(vocab_size=VOCAB, hidden_size=32, num_hidden_layers=2, state_size=4),
}


def row(attention: str, ffn_in: str = "", ffn_out: str | None = None) -> Sublayers:
    return Sublayers(tuple(attention.split()), tuple(ffn_in.split()), ffn_out)


BERT = row("attention.output.dense", "intermediate.dense", "output.dense")
BART = [row("self_attn.out_proj", "fc1", "fc2"), row("self_attn.out_proj encoder_attn.out_proj", "fc1", "fc2")]
GATED = row("self_attn.o_proj", "mlp.gate_proj mlp.up_proj", "mlp.down_proj")
NO_FFN = row("self_attn.o_proj")
T5 = ("layer.0.SelfAttention.o", "layer.0.SelfAttention.o layer.1.EncDecAttention.o")
WI, WI_2 = "layer.1.DenseReluDense.wi", "layer.2.DenseReluDense.wi"  # a decoder's block has one more sub-layer
WO, WO_2 = "layer.1.DenseReluDense.wo", "layer.2.DenseReluDense.wo"
NEOX = ("mlp.dense_h_to_4h", "mlp.dense_4h_to_h")

EXPECTED: dict[str, list[Sublayers]] = {  # one row per block, names below the block
    "bert": 2 * [BERT],
    "roberta": 2 * [BERT],
    "deberta_v2": 2 * [BERT],
    "modernbert": 2 * [row("attn.Wo", "mlp.Wi", "mlp.Wo")],
    "distilbert": 2 * [row("attention.out_lin", "ffn.lin1", "ffn.lin2")],
    "electra": 2 * [BERT],
    "mpnet": 2 * [row("attention.attn.o", "intermediate.dense", "output.dense")],
    "gpt2": 2 * [row("attn.c_proj", "mlp.c_fc", "mlp.c_proj")],
    "llama": 2 * [GATED],
    "qwen3": 2 * [GATED],
    "t5": 2 * [row(T5[0], WI, WO)] + 2 * [row(T5[1], WI_2, WO_2)],
    "bart": 2 * [BART[0]] + 2 * [BART[1]],
    "deberta": 2 * [BERT],
    "xlm_roberta": 2 * [BERT],
    "longformer": 2 * [BERT],
    "xlnet": 2 * [row("", "ff.layer_1", "ff.layer_2")],  # its attention's projections are plain parameters
    "mobilebert": 2 * [row("")],  # everything between two bottlenecks
    "bert_decoder": 2 * [row("attention.output.dense crossattention.output.dense", *BERT.ffn_in, BERT.ffn_out)],
    "mt5": 2 * [row(T5[0], f"{WI}_0 {WI}_1", WO)] + 2 * [row(T5[1], f"{WI_2}_0 {WI_2}_1", WO_2)],
    "gpt_neox": 2 * [row("attention.dense", *NEOX)],
    "opt": 2 * [BART[0]],
    "bloom": 2 * [row("self_attention.dense", *NEOX)],
    "falcon": 2 * [row("self_attention.dense", *NEOX)],
    "phi": 2 * [row("self_attn.dense", "mlp.fc1", "mlp.fc2")],
    "phi3": 2 * [row("self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")],
    "mistral": 2 * [GATED],
    "qwen2": 2 * [GATED],
    "gemma3": 2 * [GATED],
    "gemma3n": 2 * [GATED],
    "minimax": [row("self_attn.out_proj"), NO_FFN],
    "mixtral": 2 * [NO_FFN],
    "qwen2_moe": [GATED, NO_FFN],
    "switch": [row(T5[0], "layer.1.mlp.wi", "layer.1.mlp.wo"), row(T5[0])]
    + [row(T5[1], "layer.2.mlp.wi", "layer.2.mlp.wo"), row(T5[1])],
    "jamba": [row("", "feed_forward.gate_proj feed_forward.up_proj", "feed_forward.down_proj"), NO_FFN],
    "mamba": 2 * [row("")],
}


def small(name: str, **sizes: int) -> nn.Module:
    config = {**CONFIGS, **MORE}[name]()
    for key, value in sizes.items():
        setattr(config, key, value)
    torch.manual_seed(0)
    return t.AutoModel.from_config(config).eval()


def below_blocks(model: nn.Module) -> list[Sublayers]:
    """What is found in `model`, with each name shortened by its block's."""
    rows = []
    for block, found in zip(find_blocks(model), sublayers(model), strict=True):
        names = [*found.attention, *found.ffn_in, *([found.ffn_out] if found.ffn_out else [])]
        assert all(name.startswith(f"{block.name}.") for name in names)
        assert all(is_linear(model.get_submodule(name)) for name in names)
        cut = len(block.name) + 1
        attention = tuple(name[cut:] for name in found.attention)
        ffn_in = tuple(name[cut:] for name in found.ffn_in)
        rows.append(Sublayers(attention, ffn_in, found.ffn_out[cut:] if found.ffn_out else None))
    return rows


@pytest.mark.parametrize(("name", "task"), cases())
def test_under_every_head(name: str, task: str) -> None:
    encoder_alone = (name, task) == ("t5", "TOKEN_CLS")
    assert below_blocks(build(name, task)) == EXPECTED[name][: 2 if encoder_alone else None]


@pytest.mark.parametrize("name", MORE)
def test_more_architectures(name: str) -> None:
    assert below_blocks(small(name)) == EXPECTED[name]


@pytest.mark.parametrize("name", EXPECTED)
def test_what_is_found_runs_last_in_its_sublayer(name: str) -> None:
    # the order of execution, which the search does not see
    model = small(name)
    called: list[str] = []
    for path, module in model.named_modules():
        if is_linear(module):
            module.register_forward_hook(lambda *_, path=path: called.append(path))
    ids = torch.randint(5, VOCAB, (2, 6), generator=torch.Generator().manual_seed(1))
    both = name in (*ENCODER_DECODERS, "mt5", "switch")
    more = {"encoder_hidden_states": torch.randn(2, 6, 32)} if name == "bert_decoder" else {}
    with torch.no_grad():
        model(input_ids=ids, **({"decoder_input_ids": ids} if both else more))
    for block, found in zip(find_blocks(model), sublayers(model), strict=True):
        inside = [path for path in called if path.startswith(f"{block.name}.")]
        attentions = [
            f"{block.name}.{path}."
            for path, module in model.get_submodule(block.name).named_modules()
            if path and "Attention" in type(module).__name__
        ]
        for output in found.attention:
            owner = next(path for path in attentions if output.startswith(path))  # the outermost comes first
            assert [path for path in inside if path.startswith(owner)][-1] == output
        outside = [path for path in inside if not path.startswith(tuple(attentions))]
        if found.ffn_out and name != "gemma3n":  # whose bottlenecks run after it
            end = len(outside) - 1
            assert outside.index(found.ffn_out) == end
            assert set(outside[end - len(found.ffn_in) : end]) == set(found.ffn_in)


@pytest.mark.parametrize("name", ["bert", "gpt2", "llama", "modernbert", "bart"])
def test_adapters_below_linear_layers_are_no_projections(name: str) -> None:
    model = small(name)
    for module in [m for m in model.modules() if is_linear(m)]:
        module.add_module("houlsby_layer", nn.ModuleDict({"down": nn.Linear(32, 64), "up": nn.Linear(64, 32)}))
    assert below_blocks(model) == EXPECTED[name]


@pytest.mark.parametrize(
    ("name", "size"), [("bert", "intermediate_size"), ("llama", "intermediate_size"), ("gpt2", "n_inner")]
)
def test_feed_forward_no_wider_than_the_hidden_states(name: str, size: str) -> None:
    assert below_blocks(small(name, **{size: 32})) == EXPECTED[name]  # all square
    narrow = 2 * [Sublayers(EXPECTED[name][0].attention, (), None)]
    assert below_blocks(small(name, **{size: 16})) == narrow  # looks like a bottleneck


def test_one_matrix_for_gate_and_up_of_the_width_of_the_hidden_states() -> None:
    assert below_blocks(small("modernbert", intermediate_size=32)) == EXPECTED["modernbert"]


def test_two_feed_forward_networks_are_none() -> None:
    model = small("bert")
    model.encoder.layer[0].second = nn.Sequential(nn.Linear(32, 64), nn.Linear(64, 32))
    assert below_blocks(model) == [row("attention.output.dense"), BERT]


def test_an_input_takes_the_hidden_states() -> None:
    model = small("bert")
    model.encoder.layer[0].beside = nn.Linear(8, 64)
    assert below_blocks(model) == 2 * [BERT]


def test_a_third_input_leaves_a_doubt() -> None:
    model = small("llama")
    model.layers[1].mlp.third = nn.Linear(32, 64)
    assert below_blocks(model) == [GATED, NO_FFN]


def test_attention_of_torch_does_not_call_its_output_projection() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(VOCAB, 32)
            self.layers = nn.ModuleList(nn.TransformerEncoderLayer(32, 2, 64, batch_first=True) for _ in range(2))

    assert below_blocks(Plain()) == 2 * [row("", "linear1", "linear2")]


def test_sizes_of_linear_layers() -> None:
    assert linear_features(nn.Linear(3, 5)) == (3, 5)
    assert linear_features(Conv1D(5, 3)) == (3, 5)
    assert not is_linear(nn.Conv1d(3, 5, 1))
    with pytest.raises(TypeError, match=r"expected a linear layer .* got LayerNorm; choose target_modules"):
        linear_features(nn.LayerNorm(3))


@pytest.mark.parametrize("method", ["bitfit", "hiwi", "houlsby", "pafi"])
def test_adapters_that_are_there_already_are_not_seen(method: str) -> None:
    expected = sublayers(build("bert"))
    everywhere = {"hiwi": {"target_modules": r".*(query|dense|LayerNorm)"}, "houlsby": {"target_modules": ["dense"]}}
    model = adapted("bert", method=method, **everywhere.get(method, {}))
    assert sublayers(model.get_base_model()) == expected

"""Tiny backbones of real architectures, made from configurations; random weights, seconds to build."""

from __future__ import annotations

import torch
import transformers as t
from torch import nn

VOCAB = 120
SIZES = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
TEXT = {**SIZES, "vocab_size": VOCAB, "max_position_embeddings": 64, "pad_token_id": 0}
DECODER = {**TEXT, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}

CONFIGS = {
    "bert": lambda: t.BertConfig(**TEXT),
    "roberta": lambda: t.RobertaConfig(**TEXT),
    "deberta_v2": lambda: t.DebertaV2Config(
        **TEXT, relative_attention=True, pos_att_type=["p2c", "c2p"], position_biased_input=False
    ),
    "modernbert": lambda: t.ModernBertConfig(
        **TEXT, global_attn_every_n_layers=2, bos_token_id=1, eos_token_id=2, cls_token_id=3, sep_token_id=4
    ),
    "distilbert": lambda: t.DistilBertConfig(
        vocab_size=VOCAB, dim=32, n_layers=2, n_heads=2, hidden_dim=64, max_position_embeddings=64
    ),
    "electra": lambda: t.ElectraConfig(**TEXT, embedding_size=16),
    "mpnet": lambda: t.MPNetConfig(**TEXT),
    "gpt2": lambda: t.GPT2Config(
        vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=2, n_positions=64, bos_token_id=1, eos_token_id=2, pad_token_id=0
    ),
    "llama": lambda: t.LlamaConfig(**DECODER),
    "qwen3": lambda: t.Qwen3Config(**DECODER, head_dim=16),
    "t5": lambda: t.T5Config(
        vocab_size=VOCAB,
        d_model=32,
        num_layers=2,
        num_heads=2,
        d_kv=16,
        d_ff=64,
        decoder_start_token_id=0,
        tie_word_embeddings=False,
    ),
    "bart": lambda: t.BartConfig(
        vocab_size=VOCAB,
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        decoder_start_token_id=2,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    ),
}
ENCODERS = ["bert", "roberta", "deberta_v2", "modernbert", "distilbert", "electra", "mpnet"]
DECODERS = ["gpt2", "llama", "qwen3"]
ENCODER_DECODERS = ["t5", "bart"]
BIASED = ["bert", "roberta", "deberta_v2", "distilbert", "electra", "mpnet", "gpt2", "bart"]

TASKS = {
    "SEQ_CLS": t.AutoModelForSequenceClassification,
    "TOKEN_CLS": t.AutoModelForTokenClassification,
    "QUESTION_ANS": t.AutoModelForQuestionAnswering,
    "MULTIPLE_CHOICE": t.AutoModelForMultipleChoice,
    "FEATURE_EXTRACTION": t.AutoModel,
    "CAUSAL_LM": t.AutoModelForCausalLM,
    "SEQ_2_SEQ_LM": t.AutoModelForSeq2SeqLM,
}


# what PEFT does not find by itself
HEADS = {("t5", "SEQ_CLS"): ["classification_head"], ("bart", "SEQ_CLS"): ["classification_head"]}


def cases() -> list[tuple[str, str]]:
    """All (backbone, task) pairs that transformers has a class for."""
    pairs = []
    for name in CONFIGS:
        config = CONFIGS[name]()
        for task, auto in TASKS.items():
            if type(config) in auto._model_mapping:
                if task == "CAUSAL_LM" and name not in DECODERS:
                    continue  # encoders have such classes too, for use as decoders
                pairs.append((name, task))
    return pairs


def build(name: str, task: str = "SEQ_CLS", num_labels: int = 2, seed: int = 0) -> nn.Module:
    """Build a backbone in evaluation mode; the same seed gives the same weights, whatever the number of labels."""
    config = CONFIGS[name]()
    config.num_labels = num_labels
    torch.manual_seed(seed)
    model = TASKS[task].from_config(config, attn_implementation="eager" if name in ("deberta_v2", "mpnet") else "sdpa")
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):  # zero in fresh models, as in no trained one
            parameter.data.normal_(0.0, 0.1, generator=generator)
    if num_labels != 2:  # the same weights wherever the number of labels does not show
        state = model.state_dict()
        for key, value in build(name, task, seed=seed).state_dict().items():
            if state[key].shape == value.shape:
                state[key].copy_(value)
    return model.eval()


def inputs(name: str, task: str, batch: int = 3, length: int = 7, seed: int = 1) -> dict[str, torch.Tensor]:
    """Token ids and what else the task's forward needs; no padding."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, 2, length) if task == "MULTIPLE_CHOICE" else (batch, length)
    ids = torch.randint(5, VOCAB, shape, generator=generator)
    if name == "bart" and task in ("SEQ_CLS", "QUESTION_ANS"):
        ids[:, -1] = 2  # its classifier reads the state at </s>
    if name in ENCODER_DECODERS and task == "SEQ_CLS":
        ids[:, -1] = 1 if name == "t5" else 2
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if name in ENCODER_DECODERS and task in ("FEATURE_EXTRACTION", "SEQ_2_SEQ_LM"):
        found["decoder_input_ids"] = torch.randint(5, VOCAB, (batch, 4), generator=generator)
    return found


def output(model: nn.Module, batch: dict[str, torch.Tensor], **kwargs: object) -> torch.Tensor:
    """The first floating tensor a model returns: logits, start logits or the last hidden state."""
    result = model(**batch, **kwargs)
    for key in ("logits", "start_logits", "last_hidden_state"):
        value = result.get(key)
        if value is not None:
            return value
    raise AssertionError(f"no output among {list(result)}")

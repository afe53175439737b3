"""The methods that train and compare can use, by name: what each adds to the backbone, as one small entry per method.

Knows nothing of data and training loops.
"""

from __future__ import annotations

from peft import IA3Config, LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig
from peft.utils.constants import DUMMY_TARGET_MODULES, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

from peft_aot.aot.config import AoTConfig
from peft_aot.bitfit.config import BitFitConfig
from peft_aot.hiwi.config import HiWiConfig
from peft_aot.houlsby.config import HoulsbyConfig
from peft_aot.method import AdapterRequest, Method, Space
from peft_aot.pafi.config import PaFiConfig
from peft_aot.suggestions import did_you_mean


def _aot_fc(request: AdapterRequest) -> PeftConfig:
    return AoTConfig(r=request.rank or 64, reparam="fc", **request.shared)


def _aot_kron(request: AdapterRequest) -> PeftConfig:
    return AoTConfig(r=request.rank or 16, reparam="kron", **request.shared)


def _aot_constant(request: AdapterRequest) -> PeftConfig:
    return AoTConfig(reparam="constant", **request.shared)


def _aot_layer0(request: AdapterRequest) -> PeftConfig:
    return AoTConfig(r=request.rank or 64, layers_to_transform=[0], **request.shared)


def _aot_random(request: AdapterRequest) -> PeftConfig:
    return AoTConfig(r=request.rank or 64, bottleneck_input="random", **request.shared)


def _aot_hidden(request: AdapterRequest) -> PeftConfig:
    return AoTConfig(r=request.rank or 64, bottleneck_input="hidden", **request.shared)


def _lora(request: AdapterRequest) -> PeftConfig:
    rank = request.rank or 16
    known = request.model_type in TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    targets = None if known else "all-linear"
    return LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.1, target_modules=targets, **request.shared)


def _ia3(request: AdapterRequest) -> PeftConfig:
    return IA3Config(**request.shared)


def _prompt(request: AdapterRequest) -> PeftConfig:
    return PromptTuningConfig(num_virtual_tokens=request.virtual_tokens, **request.shared)


def _prefix(request: AdapterRequest) -> PeftConfig:
    # Without the projection MLP: PEFT flattens it on save, and then training cannot be resumed.
    return PrefixTuningConfig(num_virtual_tokens=request.virtual_tokens, prefix_projection=False, **request.shared)


def _bitfit(request: AdapterRequest) -> PeftConfig:
    return BitFitConfig(**request.shared)


def _houlsby(request: AdapterRequest) -> PeftConfig:
    return HoulsbyConfig(r=request.rank or 64, **request.shared)


def _pafi(request: AdapterRequest) -> PeftConfig:
    return PaFiConfig(**request.shared)


def _hiwi(request: AdapterRequest) -> PeftConfig:
    return HiWiConfig(r=request.rank or 16, **request.shared)


def _head(request: AdapterRequest) -> PeftConfig:
    return LoraConfig(target_modules=DUMMY_TARGET_MODULES, bias="none", **request.shared)


DECAY = (0.0, 0.01)
AOT_RATES = (3e-3, 5e-3, 1e-2, 2e-2)
AOT_SPACE: Space = {"learning_rate": AOT_RATES, "rank": (64, 256)}

_METHODS = (
    Method(
        "aot",
        "AoT-FC",
        "AoT P-Tuning, FC reparametrization: a looked-up row before every block",
        5e-3,
        AOT_SPACE,
        _aot_fc,
        "ours",
        notes="the rank costs nothing once fused",
    ),
    Method(
        "aot-kron",
        "AoT-Kronecker",
        "AoT P-Tuning, Kronecker reparametrization",
        5e-3,
        {"learning_rate": AOT_RATES, "rank": (10, 20)},
        _aot_kron,
        "ours",
        notes="the rank costs nothing once fused",
    ),
    Method(
        "lora",
        "LoRA",
        "LoRA on the modules that PEFT names for the architecture (BERT: query and value), else on all linear ones",
        1e-3,
        {"learning_rate": (1e-3, 3e-3, 6e-3, 1e-2), "rank": (8, 16)},
        _lora,
        "peft",
        "adapters",
    ),
    Method(
        "ia3",
        "IA3",
        "IA3: rescaled keys, values and inner activations",
        5e-3,
        {"learning_rate": (5e-3, 1e-2, 3e-2, 1e-1), "weight_decay": DECAY},
        _ia3,
        "peft",
        "no",
    ),
    Method(
        "prompt",
        "prompt tuning",
        "prompt tuning (P-Tuning v1): trained vectors before the text",
        1e-2,
        {"learning_rate": (1e-2, 3e-2, 1e-1, 3e-1), "virtual_tokens": (10, 20)},
        _prompt,
        "peft",
        "no",
        True,
    ),
    Method(
        "prefix",
        "prefix tuning",
        "prefix tuning (P-Tuning v2): trained keys and values in every block",
        1e-2,
        {"learning_rate": (1e-2, 3e-2, 5e-2, 1e-1), "virtual_tokens": (10, 20)},
        _prefix,
        "peft",
        "no",
        True,
    ),
    Method(
        "bitfit",
        "BitFit",
        "BitFit: every bias of the backbone",
        2e-3,
        {"learning_rate": (3e-3, 1e-2, 2e-2, 4e-2), "weight_decay": DECAY},
        _bitfit,
        "ours",
    ),
    Method(
        "houlsby",
        "Houlsby adapters",
        "Houlsby adapters: a bottleneck after attention and feed-forward",
        1e-3,
        {"learning_rate": (1e-3, 3e-3, 6e-3, 1e-2), "rank": (16, 64)},
        _houlsby,
        "ours",
    ),
    Method(
        "pafi",
        "PaFi",
        "PaFi: the 0.5 % of the weights that are smallest in the backbone",
        5e-3,
        {"learning_rate": (3e-3, 1e-2, 2e-2, 4e-2), "weight_decay": DECAY},
        _pafi,
        "ours",
        "no",
    ),
    Method(
        "hiwi",
        "HiWi",
        "HiWi: an adapter on the feed-forward biases, gone once they are saved",
        3e-3,
        {"learning_rate": (1e-3, 3e-3, 6e-3, 1e-2), "rank": (4, 16)},
        _hiwi,
        "ours",
    ),
    Method(
        "head",
        "head only",
        "the head alone, on the frozen backbone",
        5e-3,
        {"learning_rate": (5e-3, 2e-2, 5e-2, 1e-1), "weight_decay": DECAY},
        _head,
        "reference",
        "no",
    ),
    Method(
        "full",
        "full fine-tuning",
        "full fine-tuning: every parameter",
        5e-5,
        {"learning_rate": (5e-5, 1e-4, 2e-4, 5e-4), "weight_decay": DECAY},
        None,
        "reference",
        "no",
    ),
    Method(
        "aot-constant",
        "AoT, constant",
        "control: AoT with one trained bias per block, whatever the token",
        5e-3,
        {"learning_rate": AOT_RATES, "weight_decay": DECAY},
        _aot_constant,
        "control",
        notes="is it that the bias depends on the token?",
    ),
    Method(
        "aot-layer0",
        "AoT, first block only",
        "control: AoT-FC before the first block only",
        5e-3,
        AOT_SPACE,
        _aot_layer0,
        "control",
        notes="is it that every block gets a table?",
    ),
    Method(
        "aot-random",
        "AoT, random embeddings",
        "control: AoT-FC with a frozen random table in place of the backbone's embeddings",
        5e-3,
        AOT_SPACE,
        _aot_random,
        "control",
        notes="is it what the pretrained embeddings know?",
    ),
    Method(
        "aot-hidden",
        "AoT, fed by hidden states",
        "control: AoT-FC's bottleneck fed by the hidden state, no lookup",
        5e-3,
        AOT_SPACE,
        _aot_hidden,
        "control",
        notes="what does giving up the context cost? It cannot be fused",
    ),
)
_BY_NAME = {method.name: method for method in _METHODS}


def method_names() -> tuple[str, ...]:
    """Names that `get_method` knows."""
    return tuple(_BY_NAME)


def get_method(name: str) -> Method:
    """Look a method up by name.

    Raises:
        ValueError: No method has that name; the message says which one comes closest.
    """
    if name not in _BY_NAME:
        raise ValueError(f"unknown method {name!r}; {did_you_mean(name, _BY_NAME)}")
    return _BY_NAME[name]

"""The methods that train can use, by name: what each adds to the backbone, as one small entry per method.

Knows nothing of data and training loops.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from peft import IA3Config, LoraConfig, PeftConfig, PrefixTuningConfig, PromptTuningConfig, TaskType
from peft.utils.constants import DUMMY_TARGET_MODULES, TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING

from peft_aot.aot.config import AoTConfig
from peft_aot.bitfit.config import BitFitConfig
from peft_aot.hiwi.config import HiWiConfig
from peft_aot.houlsby.config import HoulsbyConfig
from peft_aot.pafi.config import PaFiConfig
from peft_aot.suggestions import did_you_mean
from peft_aot.task import Kind


@dataclass(frozen=True)
class AdapterRequest:
    """What a method needs to know to write its PEFT configuration.

    Attributes:
        model_type: The backbone's `config.model_type`.
        kind: What the head answers.
        new_modules: Modules that the checkpoint lacks (the head, sometimes a pooler): trained and saved.
        rank: Rank, for the methods that have one; None takes the method's default.
        virtual_tokens: Length of the prompt or prefix, for the methods that have one.
    """

    model_type: str
    kind: Kind
    new_modules: tuple[str, ...]
    rank: int | None = None
    virtual_tokens: int = 20

    @property
    def shared(self) -> dict[str, Any]:
        """The fields that every PEFT configuration has.

        PEFT has no task type for multiple choice; without one it wraps the model as it is and trains what
        `modules_to_save` names.
        """
        return {
            "task_type": None if self.kind == "multiple_choice" else TaskType.SEQ_CLS,
            "modules_to_save": list(self.new_modules),
        }


@dataclass(frozen=True)
class Method:
    """One way to adapt a backbone to a task.

    Attributes:
        name: What `--method` takes.
        summary: One line for people.
        learning_rate: Peak learning rate if the user gives none.
        configure: Writes the PEFT configuration; None trains the whole model without PEFT.
        virtual_tokens: Whether the method prepends virtual tokens, which need room in the input.
    """

    name: str
    summary: str
    learning_rate: float
    configure: Callable[[AdapterRequest], PeftConfig] | None
    virtual_tokens: bool = False


def _aot_fc(request: AdapterRequest) -> PeftConfig:
    return AoTConfig(r=request.rank or 64, reparam="fc", **request.shared)


def _aot_kron(request: AdapterRequest) -> PeftConfig:
    return AoTConfig(r=request.rank or 16, reparam="kron", **request.shared)


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


_METHODS = (
    Method("aot", "AoT P-Tuning, FC reparametrization: a looked-up row before every block", 5e-4, _aot_fc),
    Method("aot-kron", "AoT P-Tuning, Kronecker reparametrization", 1e-3, _aot_kron),
    Method("lora", "LoRA on the attention's query and value", 1e-3, _lora),
    Method("ia3", "IA3: rescaled keys, values and inner activations", 5e-3, _ia3),
    Method("prompt", "prompt tuning (P-Tuning v1): trained vectors before the text", 1e-2, _prompt, True),
    Method("prefix", "prefix tuning (P-Tuning v2): trained keys and values in every block", 1e-2, _prefix, True),
    Method("bitfit", "BitFit: every bias of the backbone", 2e-3, _bitfit),
    Method("houlsby", "Houlsby adapters: a bottleneck after attention and feed-forward", 1e-3, _houlsby),
    Method("pafi", "PaFi: the 0.5 % of the weights that are smallest in the backbone", 5e-3, _pafi),
    Method("hiwi", "HiWi: an adapter on the feed-forward biases, gone once they are saved", 3e-3, _hiwi),
    Method("head", "the head alone, on the frozen backbone", 5e-3, _head),
    Method("full", "full fine-tuning: every parameter", 5e-5, None),
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


def configure(method: Method, request: AdapterRequest) -> PeftConfig | None:
    """Write the PEFT configuration of a method for one backbone and one kind of task; None for full fine-tuning.

    Raises:
        ValueError: The method cannot do it; the message says what to choose instead.
    """
    if request.rank is not None and request.rank < 1:
        raise ValueError(f"expected a rank of at least 1, got {request.rank}; pass a positive number")
    if method.virtual_tokens and request.virtual_tokens < 1:
        raise ValueError(f"expected at least 1 virtual token, got {request.virtual_tokens}; pass a positive number")
    if method.virtual_tokens and request.kind == "multiple_choice":
        raise ValueError(
            f"expected a method that PEFT supports for multiple choice, got {method.name!r}; "
            "choose another, such as aot, lora, bitfit or full"
        )
    return None if method.configure is None else method.configure(request)

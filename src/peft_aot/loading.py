"""Backbones with a fresh head, and trained adapters put back on them.

The only module here that calls `from_pretrained`. Knows nothing of data and training loops.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id  # type: ignore[attr-defined]
from peft import PeftModel
from transformers import (
    AutoConfig,
    AutoModelForMultipleChoice,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from peft_aot.staging import finish
from peft_aot.suggestions import did_you_mean
from peft_aot.task import Kind
from peft_aot.task_card import TaskCard, load_card

ADAPTER_CONFIG = "adapter_config.json"


@dataclass(frozen=True)
class Backbone:
    """A pretrained model with a head for one task.

    Attributes:
        model: The model, in float32.
        tokenizer: Its tokenizer, with a padding token.
        new_modules: Names of the modules that the checkpoint lacks and that were therefore initialised at random: the
            head and, for some backbones, a pooler. They must be trained with every method, or they are noise.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    new_modules: tuple[str, ...]


@dataclass(frozen=True)
class Trained:
    """A trained adapter on its backbone, ready to answer.

    Attributes:
        model: The model in evaluation mode, on `device`.
        tokenizer: Its tokenizer.
        card: The task card beside the adapter.
        device: Where the model is.
    """

    model: torch.nn.Module
    tokenizer: PreTrainedTokenizerBase
    card: TaskCard
    device: torch.device


def pick_device() -> torch.device:
    """The accelerator that torch sees, or the CPU."""
    return torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")


def pick_precision(wanted: Literal["auto", "fp32", "bf16"], device: torch.device) -> Literal["fp32", "bf16"]:
    """Resolve "auto": bf16 where the hardware multiplies it, fp32 where it would be emulated."""
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp32"
    features = torch.cpu.get_capabilities()
    return "bf16" if device.type == "cpu" and (features.get("avx512_bf16") or features.get("amx_bf16")) else "fp32"


def _reason(model: str, error: Exception) -> str:
    try:
        validate_repo_id(model)
    except HFValidationError:  # what the hub says of a path that is none of its ids helps nobody
        if not Path(model).exists():
            return "no such folder"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _nearby(model: str) -> str:
    """Ask whether a model folder beside the missing one was meant, or one in the hub's cache; nothing if none is."""
    path = Path(model)
    beside = [p for p in path.parent.iterdir() if (p / "config.json").is_file()] if path.parent.is_dir() else []
    cached = [p.name.removeprefix("models--").replace("--", "/") for p in Path(HF_HUB_CACHE).glob("models--*")]
    for name, known in ((path.name, [p.name for p in beside]), (model, cached)):
        others = [other for other in known if other != name]
        question = did_you_mean(name, others) if others and not path.exists() else ""
        if question.startswith("did you mean"):
            return f"{question} Or "
    return ""


def _missing_modules(model: torch.nn.Module, missing: set[str]) -> tuple[str, ...]:
    """Name the largest modules all of whose parameters the checkpoint lacks."""
    present = {name for name, _ in model.named_parameters()} - missing
    modules: dict[str, None] = {}
    for key in sorted(missing):
        parts = key.split(".")
        for depth in range(1, len(parts)):
            prefix = ".".join(parts[:depth])
            if not any(name.startswith(f"{prefix}.") for name in present):
                modules[prefix] = None
                break
    return tuple(modules)


def load_tokenizer(model: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer and give it a padding token if it has none.

    Raises:
        FileNotFoundError: There is none, or the hub cannot be reached.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"expected a tokenizer in {model!r}, got: {_reason(model, error)}; "
            f"{_nearby(model)}pass the local path of a folder that holds the model and its tokenizer"
        ) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return cast(PreTrainedTokenizerBase, tokenizer)


def load_backbone(model: str, kind: Kind, labels: tuple[str, ...]) -> Backbone:
    """Load a backbone with a head of the right size.

    Args:
        model: Hub id or local path.
        kind: What the head answers.
        labels: Label names; empty for regression. Their number is the head's width, except for multiple choice.

    Raises:
        FileNotFoundError: The model cannot be had: no such folder, or no network; the message says what to pass.
    """
    head: dict[str, Any] = {}
    if kind == "classification":
        head = {
            "num_labels": len(labels),
            "id2label": dict(enumerate(labels)),
            "label2id": {label: index for index, label in enumerate(labels)},
            "problem_type": "single_label_classification",
        }
    elif kind == "regression":
        head = {"num_labels": 1, "problem_type": "regression"}
    tokenizer = load_tokenizer(model)
    auto = AutoModelForMultipleChoice if kind == "multiple_choice" else AutoModelForSequenceClassification
    try:
        config = AutoConfig.from_pretrained(model, **head)
        # a checkpoint may bring a head of another size: it gets a fresh one, like a checkpoint without a head
        loaded, report = auto.from_pretrained(
            model, config=config, dtype=torch.float32, output_loading_info=True, ignore_mismatched_sizes=True
        )
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"expected a hub id that can be reached or a local model folder, got {model!r} ({_reason(model, error)}); "
            f"{_nearby(model)}pass the local path of a folder with config.json and model.safetensors"
        ) from error
    if loaded.config.pad_token_id is None:
        loaded.config.pad_token_id = tokenizer.pad_token_id
    mismatched = {entry[0] for entry in report["mismatched_keys"]}
    return Backbone(loaded, tokenizer, _missing_modules(loaded, set(report["missing_keys"]) | mismatched))


def read_card(directory: Path) -> TaskCard:
    """Read the task card of a training output, after completing a save that a crash had cut short.

    Raises:
        FileNotFoundError: There is no such directory, or no card in it.
    """
    if not directory.is_dir():
        raise FileNotFoundError(f"expected a directory, got {directory}, which is none; pass a training output")
    finish(directory, ADAPTER_CONFIG)
    return load_card(directory)


def load_trained(directory: Path, base_model: str | None = None) -> Trained:
    """Load what train left in `directory`.

    Args:
        directory: The output directory of a training run, or one of its checkpoints.
        base_model: Hub id or path of the backbone, if it is not where the task card says.

    Raises:
        FileNotFoundError: There is no task card or no adapter, or the backbone cannot be had.
    """
    card = read_card(directory)
    kind = cast(Kind, card.kind)
    is_adapter = (directory / ADAPTER_CONFIG).is_file()
    if not is_adapter and card.method != "full":
        raise FileNotFoundError(
            f"expected {ADAPTER_CONFIG} in {directory}, got none; train again or pass another directory"
        )
    backbone = load_backbone(base_model or card.base_model if is_adapter else str(directory), kind, card.labels)
    model: torch.nn.Module = backbone.model
    if is_adapter:
        model = PeftModel.from_pretrained(backbone.model, str(directory))
    device = pick_device()
    return Trained(model.eval().to(device), backbone.tokenizer, card, device)

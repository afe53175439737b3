"""The backbone of an engine: a body without a head, in the precision that this machine is fast in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast

import torch
from peft import PeftModel, get_peft_model
from torch import nn
from transformers import AutoModel, PreTrainedModel

from peft_aot.aot.config import AoTConfig
from peft_aot.loading import load_tokenizer, pick_precision

from .encode import Encoder

UNTRAINED = "untrained"
Precision = Literal["auto", "fp32", "bf16"]


@dataclass(frozen=True)
class ServingBody:
    """What every task of an engine shares.

    Attributes:
        model: The body with its blocks wrapped.
        body: The body itself.
        pooler: Its pooler, taken out since most heads do not need it, if its checkpoint has one.
        encoder: Encodes texts for it.
    """

    model: PeftModel
    body: PreTrainedModel
    pooler: nn.Module | None
    encoder: Encoder


def load_body(backbone: str | Path, precision: Precision, device: torch.device) -> ServingBody:
    """Load a backbone without a head.

    Args:
        backbone: Hub id or local path.
        precision: Of its weights; "auto" is bfloat16 where the hardware multiplies it.
        device: Where to.

    Raises:
        FileNotFoundError: The backbone or its tokenizer cannot be had.
        ValueError: One that no AoT adapter fits.
    """
    tokenizer = load_tokenizer(str(backbone))
    dtype = torch.bfloat16 if pick_precision(precision, device) == "bf16" else torch.float32
    try:
        body, report = AutoModel.from_pretrained(str(backbone), dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError) as error:
        raise FileNotFoundError(
            f"expected a hub id that can be reached or a local model folder, got {str(backbone)!r} "
            f"({str(error).splitlines()[0]}); pass the path of a folder with config.json and model.safetensors"
        ) from error
    pooler: nn.Module | None = getattr(body, "pooler", None)
    if pooler is not None:
        body.pooler = None
        lacks = any(name.startswith("pooler.") for name in report["missing_keys"])
        pooler = None if lacks else pooler.float().eval().requires_grad_(False).to(device)
    longest = _longest(body, tokenizer.model_max_length)
    model = get_peft_model(cast(PreTrainedModel, body.to(dtype)), AoTConfig(r=1), adapter_name=UNTRAINED)
    model.eval().requires_grad_(False).to(device)
    return ServingBody(model, body, pooler, Encoder(tokenizer, longest))


def _longest(body: PreTrainedModel, stated: int) -> int:
    positions = getattr(body.config, "max_position_embeddings", None) or stated
    offset = 2 if getattr(body.config, "model_type", "") in OFFSET_POSITIONS else 0
    return int(min(stated, positions - offset))


OFFSET_POSITIONS = {"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"}
"""Models whose positions begin after the padding token's."""

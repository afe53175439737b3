"""Logits of many items, in batches of similar length. Knows nothing of tasks and scores."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from peft_aot.features import Collate, Features

Logits: TypeAlias = npt.NDArray[np.float32]
EVALUATION_BATCH = 64


def _autocast(precision: str, device: torch.device) -> AbstractContextManager[object]:
    return torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext()


def compute_logits(
    model: torch.nn.Module,
    features: Features,
    collate: Collate,
    device: torch.device,
    precision: str = "fp32",
    batch_size: int = EVALUATION_BATCH,
) -> Logits:
    """Run the model over features, the longest first so that memory runs out at once or never.

    Returns:
        float32 logits in the order of the features: (N, classes), (N, choices) or (N, 1) for regression.
    """
    order = sorted(range(len(features)), key=lambda index: -features.lengths[index])
    logits: list[npt.NDArray[np.float32] | None] = [None] * len(features)
    model.eval()
    with torch.inference_mode(), _autocast(precision, device):
        for start in range(0, len(order), batch_size):
            indices = order[start : start + batch_size]
            batch = {name: value.to(device) for name, value in collate([features[i] for i in indices]).items()}
            batch.pop("labels", None)
            rows = model(**batch).logits.float().cpu().numpy()
            for index, row in zip(indices, rows, strict=True):
                logits[index] = row
    return np.stack([row for row in logits if row is not None])

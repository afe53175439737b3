"""Settings and fixtures of all tests."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"  # before anything imports huggingface_hub
sys.path.insert(0, str(Path(__file__).parent))  # for `reference` and `backbones`, whichever folder a test is in

import pytest
import torch

TOLERANCE = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Tiny tensors: more threads only cost time, and two test processes share the cores."""
    torch.set_num_threads(1)


@pytest.fixture
def tolerance() -> dict[torch.dtype, float]:
    """The one table of tolerances, by the dtype that computes."""
    return TOLERANCE

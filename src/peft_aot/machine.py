"""What machine this is, in words, for records of measurements."""

from __future__ import annotations

import os
import platform
from pathlib import Path

import torch


def describe_processor(device: torch.device) -> str:
    """Return the accelerator's name; for the CPU the processor's, its cores and the threads that torch uses."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{_processor()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()

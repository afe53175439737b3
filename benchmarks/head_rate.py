"""What does a learning rate of its own for the head change? BANKING77: 77 classes, few steps, so that the head is slow.

MiniLM-L6, 2,000 training and 1,000 validation examples, 3 epochs, batch 32, one seed; the head at 5e-2, the rest at
each of two learning rates. Compare with `results/compare_methods.md`, where both have one rate. Each finished run is
a line of `results/head_rate.jsonl`: an interrupted benchmark goes on where it stopped.

    python benchmarks/head_rate.py --data-dir DIR

`DIR` is a folder in hub layout (default: the environment variable PEFT_AOT_DATA); without one the hub is read.
"""

from __future__ import annotations

from typing import Any

from _variants import run_variants

HEAD = {"head_learning_rate": 0.05}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "AoT-FC, r=64": ("aot", {**HEAD, "rank": 64}),
    "LoRA, r=16": ("lora", {**HEAD, "rank": 16}),
    "prefix tuning, 20 tokens": ("prefix", {**HEAD, "virtual_tokens": 20}),
    "BitFit": ("bitfit", HEAD),
    "AoT-Kronecker, r=10": ("aot-kron", {**HEAD, "rank": 10}),
    "PaFi": ("pafi", HEAD),
    "full fine-tuning": ("full", HEAD),
}
RATES = {
    "aot": (5e-3, 1e-2),
    "aot-kron": (5e-3, 1e-2),
    "lora": (3e-3, 6e-3),
    "prefix": (3e-2, 5e-2),
    "bitfit": (1e-2, 2e-2),
    "pafi": (1e-2, 2e-2),
    "full": (2e-4, 5e-4),
}

if __name__ == "__main__":
    run_variants("head_rate", __doc__, ("banking77",), VARIANTS, RATES)

"""Which of AoT's choices matter? Each variant changes one thing of the default; MiniLM-L6 on TREC and BANKING77.

2,000 training and 1,000 validation examples at most, 3 epochs, batch 32, one seed, one learning rate, 5e-2 for the
head. Each finished run is a line of `results/aot_choices.jsonl`: an interrupted benchmark goes on where it stopped.

    python benchmarks/aot_choices.py --data-dir DIR

`DIR` is a folder in hub layout (default: the environment variable PEFT_AOT_DATA); without one the hub is read.
"""

from __future__ import annotations

from typing import Any

from _variants import run_variants

TASKS = ("trec", "banking77")
RATES = (5e-3,)
HEAD = {"head_learning_rate": 0.05}
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "FC: r=64, alpha=8, GELU, dropout 0": ("aot", HEAD),
    "alpha=2": ("aot", {**HEAD, "alpha": 2.0}),
    "alpha=32": ("aot", {**HEAD, "alpha": 32.0}),
    "r=16": ("aot", {**HEAD, "rank": 16}),
    "r=256": ("aot", {**HEAD, "rank": 256}),
    "embeddings as they are": ("aot", {**HEAD, "normalize_embeddings": False}),
    "random vectors for embeddings": ("aot-random", HEAD),
    "ReLU": ("aot", {**HEAD, "activation": "relu"}),
    "no nonlinearity": ("aot", {**HEAD, "activation": "identity"}),
    "dropout 0.1 on the embeddings": ("aot", {**HEAD, "dropout": 0.1}),
    "weight decay 0.1": ("aot", {**HEAD, "weight_decay": 0.1}),
    "lower half of the blocks": ("aot", {**HEAD, "layers_to_transform": [0, 1, 2]}),
    "upper half of the blocks": ("aot", {**HEAD, "layers_to_transform": [3, 4, 5]}),
    "Kronecker: r=16, alpha=8": ("aot-kron", {**HEAD, "rank": 16}),
    "Kronecker, alpha=4": ("aot-kron", {**HEAD, "rank": 16, "alpha": 4.0}),
    "Kronecker, alpha=16 (no scaling)": ("aot-kron", {**HEAD, "rank": 16, "alpha": 16.0}),
    "Kronecker, r=8": ("aot-kron", {**HEAD, "rank": 8}),
    "Kronecker, dropout 0.1 on the row": ("aot-kron", {**HEAD, "rank": 16, "dropout": 0.1}),
}

if __name__ == "__main__":
    rates = dict.fromkeys(("aot", "aot-random", "aot-kron"), RATES)
    run_variants("aot_choices", __doc__, TASKS, VARIANTS, rates)

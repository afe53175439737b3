"""Which of AoT's choices matter? Each variant changes one thing of the default; MiniLM-L6 on TREC and SST-2.

2,000 training and 1,000 validation examples at most, 3 epochs, batch 32, one seed, two learning rates per variant. Each
finished run is a line of `results/aot_choices.jsonl`: an interrupted benchmark goes on where it stopped.

    python benchmarks/aot_choices.py --data-dir DIR

`DIR` is a folder in hub layout (default: the environment variable PEFT_AOT_DATA); without one the hub is read.
"""

from __future__ import annotations

from typing import Any

from _variants import run_variants

TASKS = ("trec", "sst2")
RATES = (1e-2, 5e-3)
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "default: FC, r=64, alpha=8, GELU": ("aot", {}),
    "dropout 0.1 on the embeddings": ("aot", {"dropout": 0.1}),
    "alpha=2": ("aot", {"alpha": 2.0}),
    "alpha=32": ("aot", {"alpha": 32.0}),
    "r=16": ("aot", {"rank": 16}),
    "r=256": ("aot", {"rank": 256}),
    "embeddings as they are": ("aot", {"normalize_embeddings": False}),
    "ReLU": ("aot", {"activation": "relu"}),
    "no nonlinearity": ("aot", {"activation": "identity"}),
    "upper half of the blocks": ("aot", {"layers_to_transform": [3, 4, 5]}),
    "lower half of the blocks": ("aot", {"layers_to_transform": [0, 1, 2]}),
    "Kronecker, r=16, alpha=4": ("aot-kron", {"rank": 16}),
    "Kronecker, r=16, alpha=16 (no scaling)": ("aot-kron", {"rank": 16, "alpha": 16.0}),
    "Kronecker, r=8": ("aot-kron", {"rank": 8}),
}

if __name__ == "__main__":
    run_variants("aot_choices", __doc__, TASKS, VARIANTS, {"aot": RATES, "aot-kron": RATES})

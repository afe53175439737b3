"""Does HiWi gain if it is fed with weights in place of biases? MiniLM-L6 on TREC, two learning rates.

2,000 training examples, 3 epochs, batch 32, one seed, the head at 5e-2; compare with HiWi in
`results/compare_methods/runs.jsonl`. Each finished run is a line of `results/hiwi_weights.jsonl`: an interrupted
benchmark goes on where it stopped.

    python benchmarks/hiwi_weights.py --data-dir DIR

`DIR` is a folder in hub layout (default: the environment variable PEFT_AOT_DATA); without one the hub is read.
"""

from __future__ import annotations

from typing import Any

from _variants import run_variants

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "weights, r=16": ("hiwi", {"rank": 16, "target": "weight", "head_learning_rate": 0.05}),
}

if __name__ == "__main__":
    run_variants("hiwi_weights", __doc__, ("trec",), VARIANTS, {"hiwi": (1e-3, 3e-3)})

"""Records of comparisons, as small as a test can state them."""

from __future__ import annotations

from typing import Any, Literal

from peft_aot.compare.records import CostRecord, RunRecord


def record(
    task: str,
    score: float | None,
    method: str = "aot",
    trial: int = 0,
    seed: int = 0,
    settings: dict[str, Any] | None = None,
    status: Literal["done", "failed"] = "done",
    reason: str = "",
    **others: Any,
) -> RunRecord:
    values: dict[str, Any] = {
        "scores": {} if score is None else {"accuracy": score},
        "history": [{"epoch": 1.0, "step": 5, "loss": 0.5, "score": score, "seconds": 1.5}],
        "partial": [],
        "train_examples": 10,
        "trained_parameters": 1000,
        "stored_bytes": 4000,
        "peak_memory_bytes": 10**9,
        "train_seconds": 2.5,
        "precision": "fp32",
        "protocol": {"epochs": 3},
        "versions": {"torch": "2"},
        "machine": "a machine",
        "finished": "2026-01-01T00:00:00Z",
    }
    found = settings or {"learning_rate": 1e-3, "rank": 8}
    return RunRecord(task, method, trial, found, seed, status, reason, score, **{**values, **others})


def cost(method: str, ratio: float, variant: str = "") -> CostRecord:
    return CostRecord(
        method, variant, ratio, ratio - 0.01, ratio + 0.01, 10.0 * ratio, 10.0, [10.0], [16, 32], {}, {}, {}, "m", "now"
    )

"""How did AoT-Kronecker score as it started before, and how does it now? Reads what three searches left; runs nothing.

`results/compare_kronecker` holds searches of two earlier starts, of which the code is gone: W_L and W_M centred with
alpha = 4, and with a mean as large as their deviation with alpha = 4. `results/compare_methods` holds that of the
present one, with a mean and alpha = 8. All are by the protocol of `compare_methods.py`.

    python benchmarks/kronecker_starts.py

It writes `results/kronecker_starts.md`: of each task the best of four trials with the first seed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import mean

from rich.console import Console

from peft_aot.compare.records import RecordFile, RunRecord

RESULTS = Path(__file__).parent / "results"
STARTS = {
    "centred | 4": RESULTS / "compare_kronecker" / "centred_alpha4.jsonl",
    "with a mean | 4": RESULTS / "compare_kronecker" / "shared_alpha4.jsonl",
    "with a mean | 8": RESULTS / "compare_methods" / "runs.jsonl",
}
TASKS = ("trec", "banking77", "sst2", "stsb")


def best(records: Sequence[RunRecord], task: str) -> float:
    """Return the score in % of the best trial on a task, with the first seed."""
    own = [record for record in records if (record.task, record.method, record.seed) == (task, "aot-kron", 0)]
    return 100 * max(record.score or 0.0 for record in own)


def main() -> None:
    """Write the table, and show it."""
    lines = [f"| start of W_L, W_M | alpha | {' | '.join(TASKS)} | mean |", "|---|---:|" + "---:|" * (len(TASKS) + 1)]
    for start, path in STARTS.items():
        records = RecordFile(path, RunRecord).records
        scores = [best(records, task) for task in TASKS]
        lines.append(f"| {start} | {' | '.join(f'{score:.1f}' for score in [*scores, mean(scores)])} |")
    table = "\n".join(lines) + "\n"
    (RESULTS / "kronecker_starts.md").write_text(table, encoding="utf-8")
    Console().print(table, markup=False)


if __name__ == "__main__":
    main()

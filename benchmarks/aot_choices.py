"""Which of AoT's choices matter? Each variant changes one thing of the default; MiniLM-L6 on TREC and SST-2.

2,000 training and 1,000 validation examples at most, 3 epochs, batch 32, one seed, two learning rates per variant. Each
finished run is a line of `results/aot_choices.jsonl`: an interrupted benchmark goes on where it stopped.

    python benchmarks/aot_choices.py --data-dir DIR

`DIR` is a folder in hub layout (default: the environment variable PEFT_AOT_DATA); without one the hub is read.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from rich.console import Console

from _backbone import named_backbone
from peft_aot.cli.quiet import quiet_libraries
from peft_aot.compare.execute import execute
from peft_aot.compare.options import CompareOptions
from peft_aot.compare.records import RecordFile, Run, RunRecord

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
RESULTS = Path(__file__).parent / "results" / "aot_choices.jsonl"
console = Console()


def runs() -> list[Run]:
    """Every run: the first rate of all variants on the first task, and so on."""
    return [
        Run(task, method, number, {"learning_rate": rate, **settings}, seed=0)
        for task in TASKS
        for rate in RATES
        for number, (method, settings) in enumerate(VARIANTS.values())
    ]


def markdown(done: list[RunRecord]) -> str:
    """Every variant's scores in %."""
    scores = {record.run.key: record.score for record in done}
    heads = [f"{task} at {rate:g}" for task in TASKS for rate in RATES]
    lines = [f"| variant | {' | '.join(heads)} |", "|---|" + "---:|" * len(heads)]
    for name, (method, settings) in VARIANTS.items():
        keys = [Run(t, method, 0, {"learning_rate": r, **settings}, 0).key for t in TASKS for r in RATES]
        cells = ["not run" if key not in scores else _percent(scores[key]) for key in keys]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _percent(score: float | None) -> str:
    return "failed" if score is None else f"{100 * score:.1f}"


def main() -> None:
    """Run what has not been run, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("PEFT_AOT_DATA"), help="folder in hub layout")
    arguments = parser.parse_args()
    quiet_libraries()
    file = RecordFile(RESULTS, RunRecord)
    data_dir = Path(arguments.data_dir).absolute() if arguments.data_dir else None
    finished = {record.run.key for record in file.records}
    with named_backbone() as model:
        options = CompareOptions(
            model=model,
            output=RESULTS.parent,
            tasks=TASKS,
            methods=("aot", "aot-kron"),
            data_dir=data_dir,
            epochs=3,
            patience=None,
            batch_size=32,
            limit_train=2000,
            limit_validation=1000,
        )
        for run in runs():
            if run.key not in finished:
                record = execute(options, run)
                file.append(record)
                console.print(f"{run.task} {run.method} {run.settings}: {record.score} in {record.train_seconds:.0f} s")
    RESULTS.with_suffix(".md").write_text(markdown(file.records), encoding="utf-8")
    console.print(RESULTS.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

"""Running variants of methods by one small protocol, resumably: what several benchmarks of choices share."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from _backbone import named_backbone
from peft_aot.cli.quiet import quiet_libraries
from peft_aot.compare.execute import execute
from peft_aot.compare.options import CompareOptions
from peft_aot.compare.records import RecordFile, Run, RunRecord

RESULTS = Path(__file__).parent / "results"
Variants = Mapping[str, tuple[str, Mapping[str, Any]]]
"""Name -> (method, settings)."""
Rates = Mapping[str, Sequence[float]]
"""Method -> learning rates, of which every method has as many; the most important first."""
console = Console()


def run_variants(name: str, about: str | None, tasks: Sequence[str], variants: Variants, rates: Rates) -> None:
    """Run what has not been run, then write the table: 3 epochs, 2,000 training examples, one seed.

    Args:
        name: Of the files `results/<name>.jsonl` and `.md`.
        about: What `--help` says.
        tasks: Tasks, in order.
        variants: What is compared.
        rates: Learning rates of each method.
    """
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("PEFT_AOT_DATA"), help="folder in hub layout")
    arguments = parser.parse_args()
    quiet_libraries()
    data_dir = Path(arguments.data_dir).absolute() if arguments.data_dir else None
    file = RecordFile(RESULTS / f"{name}.jsonl", RunRecord)
    finished = {record.run.key for record in file.records}
    with named_backbone() as model:
        options = CompareOptions(
            model=model,
            output=RESULTS,
            tasks=tuple(tasks),
            data_dir=data_dir,
            epochs=3,
            patience=None,
            batch_size=32,
            limit_train=2000,
            limit_validation=1000,
        )
        for run in _runs(tasks, variants, rates):
            if run.key not in finished:
                record = execute(options, run)
                file.append(record)
                console.print(f"{run.task} {run.method} {run.settings}: {record.score} in {record.train_seconds:.0f} s")
    table = _markdown(file.records, tasks, variants, rates)
    (RESULTS / f"{name}.md").write_text(table, encoding="utf-8")
    console.print(table)


def _runs(tasks: Sequence[str], variants: Variants, rates: Rates) -> list[Run]:
    """Every run: the first rate of all variants on the first task, and so on."""
    return [
        Run(task, method, place, {"learning_rate": rates[method][place], **settings}, seed=0)
        for task in tasks
        for place in range(len(next(iter(rates.values()))))
        for method, settings in variants.values()
    ]


def _markdown(done: Sequence[RunRecord], tasks: Sequence[str], variants: Variants, rates: Rates) -> str:
    """Every variant's scores in %, by task."""
    scores = {record.run.key: record.score for record in done}
    lines = [f"| variant | {' | '.join(tasks)} |", "|---|" + "---|" * len(tasks)]
    for name, (method, settings) in variants.items():
        cells = []
        for task in tasks:
            keys = {rate: Run(task, method, 0, {"learning_rate": rate, **settings}, 0).key for rate in rates[method]}
            cells.append(", ".join(f"{_told(scores, key)} at {rate:g}" for rate, key in sorted(keys.items())))
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _told(scores: Mapping[tuple[str, ...], float | None], key: tuple[str, ...]) -> str:
    if key not in scores:
        return "not run"
    score = scores[key]
    return "failed" if score is None else f"{100 * score:.1f}"

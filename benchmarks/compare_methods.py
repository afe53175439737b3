"""What does AoT give beside full fine-tuning, BitFit, LoRA, prefix tuning, PaFi and HiWi on a small real backbone?

`peft-aot compare` on MiniLM-L6 with at most 2,000 training and 1,000 validation examples per task, 3 epochs, batch 32,
four trials per method and task, three seeds of the best. The head learns at 5e-2 whatever the method: with one rate
for all, a task of many classes measures how large a rate a method bears (`compare_shared_rate`, kept to show that).
`compare_pairs` puts AoT's controls beside it where two texts are compared; its runs of other methods are those of
`compare_methods`.
Tasks were chosen by the time that a run takes. Each finished run is a line of `results/NAME/runs.jsonl`: an
interrupted benchmark goes on where it stopped. Long: hours on 2 cores.

    python benchmarks/compare_methods.py --data-dir DIR [--report-only]

It writes `results/compare_*.md` and the pictures of docs/comparison.md.

`DIR` is a folder in hub layout (default: the environment variable PEFT_AOT_DATA); without one the hub is read.
"""

from __future__ import annotations

import argparse
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from _backbone import named_backbone
from peft_aot.cli.quiet import quiet_libraries
from peft_aot.compare import CompareOptions, View, compare
from peft_aot.compare.options import CONTROLS
from peft_aot.compare.records import Run, RunRecord
from peft_aot.compare.report.terminal import TerminalTable
from peft_aot.compare.space import head_rate_axes

METHODS = ("full", "head", "bitfit", "lora", "prefix", "pafi", "hiwi", "aot", "aot-kron")
ON_PAIRS = ("bitfit", "lora", "aot", "aot-kron", *CONTROLS)
HEAD_RATE = 5e-2


@dataclass(frozen=True)
class Question:
    """One comparison: what `results/NAME` holds."""

    name: str
    tasks: tuple[str, ...]
    methods: tuple[str, ...]
    seeds: int = 3
    head_rate: float | None = HEAD_RATE
    pictures: bool = False

    def options(self, model: str, data_dir: Path | None) -> CompareOptions:
        """Write what is asked of `compare`."""
        return CompareOptions(
            model=model,
            output=RESULTS / self.name,
            tasks=self.tasks,
            methods=self.methods,
            data_dir=data_dir,
            trials=4,
            seeds=self.seeds,
            epochs=3,
            patience=None,
            batch_size=32,
            limit_train=2000,
            limit_validation=1000,
            spaces={} if self.head_rate is None else head_rate_axes(self.methods, self.head_rate),
        )


QUESTIONS = (
    Question("compare_methods", ("trec", "banking77", "sst2", "stsb", "wic"), METHODS, pictures=True),
    Question("compare_controls", ("trec",), ("bitfit", "aot", *CONTROLS)),
    Question("compare_pairs", ("stsb",), ON_PAIRS, seeds=1),
    Question("compare_shared_rate", ("sst2", "trec", "banking77"), METHODS, seeds=1, head_rate=None),
)
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
    with named_backbone() as model:
        for question in QUESTIONS:
            result = compare(question.options(model, data_dir), Told(), report_only=arguments.report_only)
            console.print(TerminalTable(result.summary))
            report = RESULTS / question.name / "report"
            shutil.copy(report / "table.md", RESULTS / f"{question.name}.md")
            for picture in ("evp", "bytes", "ratio") if question.pictures else ():
                shutil.copy(report / f"{picture}.png", IMAGES / f"compare-{picture}.png")


if __name__ == "__main__":
    main()

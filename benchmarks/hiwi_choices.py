"""Which of the choices that HiWi's paper leaves open matter? Activation, rank and sharing, with BitFit as the control.

MiniLM-L6 on TREC, both feed-forward biases of every block, 2 epochs, batch 32, one seed, three learning rates per
variant; the control trains the same biases directly. Each finished run is one JSON line: an interrupted benchmark goes
on where it stopped.

    python benchmarks/hiwi_choices.py --data-dir DIR [--model PATH]
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

import peft_aot
from peft_aot.demo.carriers import locate_backbone
from peft_aot.train import TrainOptions, train

FFN = r".*\.layer\.\d+\.(intermediate|output)\.dense"


VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "relu, r=16": ("hiwi", {"activation": "relu", "r": 16}),
    "relu, r=4": ("hiwi", {"activation": "relu", "r": 4}),
    "relu, r=64": ("hiwi", {"activation": "relu", "r": 64}),
    "gelu, r=16": ("hiwi", {"activation": "gelu", "r": 16}),
    "identity, r=16": ("hiwi", {"activation": "identity", "r": 16}),
    "relu, r=16, shared": ("hiwi", {"activation": "relu", "r": 16, "share": True}),
    "BitFit on the same biases": ("bitfit", {"target_modules": FFN}),
}
RATES = (2e-3, 6e-3, 2e-2)
RESULTS = Path(__file__).parent / "results" / "hiwi_choices.jsonl"
console = Console()


def execute(variant: str, rate: float, model: str, data_dir: Path | None) -> dict[str, Any]:
    """Train once and return what is to be recorded."""
    method, overrides = VARIANTS[variant]
    with tempfile.TemporaryDirectory() as folder:
        options = TrainOptions(
            task="trec",
            model=model,
            output=Path(folder) / "adapter",
            method=method,
            overrides=overrides,
            data_dir=data_dir,
            epochs=2,
            batch_size=32,
            learning_rate=rate,
            seed=0,
        )
        result = train(options)
    return {
        "variant": variant,
        "learning_rate": rate,
        "score": result.score,
        "trainable_parameters": result.trainable_parameters,
        "stored_bytes": result.stored_bytes,
        "train_seconds": round(result.train_seconds, 1),
        "backbone": Path(model).name,
        "versions": {"peft_aot": peft_aot.__version__, "torch": torch.__version__},
    }


def read(path: Path) -> list[dict[str, Any]]:
    """Finished runs; a last line that was cut off counts as not run."""
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def markdown(done: list[dict[str, Any]]) -> str:
    """Every variant's scores, by learning rate."""
    lines = [
        "| variant | " + " | ".join(f"lr {rate:g}" for rate in RATES) + " | trained | stored |",
        "|---|" + "---|" * (len(RATES) + 2),
    ]
    for variant in VARIANTS:
        mine = {run["learning_rate"]: run for run in done if run["variant"] == variant}
        cells = [f"{100 * mine[rate]['score']:.1f}" if rate in mine else "not run" for rate in RATES]
        one = next(iter(mine.values()), None)
        sizes = f"{one['trainable_parameters']:,} | {one['stored_bytes'] / 1e3:.0f} kB" if one else "- | -"
        lines.append(f"| {variant} | {' | '.join(cells)} | {sizes} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what has not been run, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="hub id or path of the backbone")
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("PEFT_AOT_DATA"), help="folder in hub layout")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    model = arguments.model or str(locate_backbone())
    data_dir = Path(arguments.data_dir) if arguments.data_dir else None
    done = read(RESULTS)
    for rate in (RATES[1], RATES[0], RATES[2]):
        for variant in VARIANTS:
            if any((run["variant"], run["learning_rate"]) == (variant, rate) for run in done):
                continue
            record = execute(variant, rate, model, data_dir)
            console.print(f"{variant}, lr {rate:g}: {100 * record['score']:.1f} in {record['train_seconds']:.0f} s")
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            done.append(record)
    RESULTS.with_suffix(".md").write_text(markdown(done), encoding="utf-8")
    console.print(RESULTS.with_suffix(".md").read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()

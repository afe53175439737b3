"""What does the number format of a fused table do to the answers of trained adapters?

AoT-FC is trained on MiniLM-L6 with the settings that the search of `compare_methods` liked best (2,000 training
examples, 3 epochs, batch 32, bf16 autocast, seed 0). Then for every format: fuse, load, compute the logits of the
validation split in float32, and compare them with those of the same adapter without a table. `int8, tokens of the
training data` keeps only these tokens' rows; the rest is computed from the factors, which are always beside the table.

    python benchmarks/storage_types.py --data-dir DIR [--tasks trec sst2] [--report-only]

Every table adds one JSON line to results/storage_types.jsonl; then results/storage_types.md is written anew from these
lines. Nothing here is timed.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from peft import PeftModel
from rich.console import Console

from _backbone import named_backbone
from _record import append
from peft_aot import fuse
from peft_aot.aot.model import AoTModel
from peft_aot.cli.quiet import quiet_libraries
from peft_aot.compare.records import RecordFile, RunRecord
from peft_aot.data import TRAIN, VALIDATION, load_split
from peft_aot.features import Features, collator, encode
from peft_aot.inference import Logits, compute_logits
from peft_aot.loading import Trained, load_trained
from peft_aot.metrics import compute_scores, mean_score
from peft_aot.own_task import task_of
from peft_aot.tables import TABLE_FILE
from peft_aot.train import TrainOptions, train

RESULTS = Path(__file__).parent / "results"
RUNS = RESULTS / "compare_methods" / "runs.jsonl"
LINES = RESULTS / "storage_types.jsonl"
PART = "int8, tokens of the training data"
FORMATS = ("float32", "float16", "bfloat16", "int8", PART)
LIMITS = {TRAIN: 2000, VALIDATION: 1000}
console = Console()


def best_settings(task: str) -> dict[str, Any]:
    """Return the settings of AoT-FC that scored best in the search on a task, of equal ones the first tried."""
    runs = [r for r in RecordFile(RUNS, RunRecord).records if (r.task, r.method, r.seed) == (task, "aot", 0)]
    return dict(max(runs, key=lambda run: run.score or 0.0).settings)


def logits_of(trained: Trained, features: Features, table: bool) -> Logits:
    """Compute logits in float32, and make sure that they come from a table, or that they do not."""
    model = cast(PeftModel, trained.model)
    found = compute_logits(model, features, collator(trained.tokenizer, "classification"), trained.device, "fp32")
    used = cast(AoTModel, model.base_model).lookup.fresh_table("default") is not None
    if used != table:
        raise RuntimeError(f"expected {'a' if table else 'no'} table to be used, got the opposite; trust no figure")
    return found


def ids_of(features: Features) -> torch.Tensor:
    """Return every token id of the features, as often as it occurs."""
    return torch.tensor([token for row in features.rows for token in row["input_ids"]])


def measure(task_name: str, model: str, data_dir: Path | None) -> list[dict[str, Any]]:
    """Train one adapter, and return a record per format."""
    settings = best_settings(task_name)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "run"
        options = TrainOptions(
            task_name, model, folder, "aot", data_dir, batch_size=32, precision="bf16", limit_train=LIMITS[TRAIN],
            limit_validation=LIMITS[VALIDATION], **settings,
        )  # fmt: skip
        console.print(f"training {task_name} with {settings} ...")
        train(options)
        bare = load_trained(folder)
        task = task_of(bare.card)
        splits = {name: load_split(task, name, data_dir, LIMITS[name]) for name in (TRAIN, VALIDATION)}
        features = {
            name: encode(split.items, bare.tokenizer, task.kind, bare.card.max_length)
            for name, split in splits.items()
        }  # fmt: skip
        plain = logits_of(bare, features[VALIDATION], table=False)
        score = mean_score(compute_scores(task.metrics, splits[VALIDATION].items, plain))
        padding = torch.tensor([cast(int, bare.tokenizer.pad_token_id)])
        kept = torch.unique(torch.cat([ids_of(features[TRAIN]), padding]))
        asked = torch.unique(ids_of(features[VALIDATION]))
        records = []
        for name in FORMATS:
            tokens = kept if name == PART else None
            report = fuse(folder, model, dtype=name.partition(",")[0], token_ids=tokens, progress=False)
            logits = logits_of(load_trained(folder), features[VALIDATION], table=True)
            difference = np.abs(logits - plain)
            records.append(
                {
                    "task": task_name,
                    "format": name,
                    "settings": settings,
                    "partial_data": [split.name for split in splits.values() if split.partial],
                    "examples": len(plain),
                    "tokens": report.header.tokens,
                    "share_of_validation_tokens": round(float(torch.isin(asked, kept).float().mean()), 4)
                    if name == PART
                    else 1.0,
                    "row_difference": report.max_row_difference,
                    "logit_difference_max": float(difference.max()),
                    "logit_difference_mean": float(difference.mean()),
                    "logit_spread": float(plain.std()),
                    "changed_predictions": int((logits.argmax(-1) != plain.argmax(-1)).sum()),
                    "score": mean_score(compute_scores(task.metrics, splits[VALIDATION].items, logits)),
                    "score_of_factors": score,
                    "table_bytes": report.bytes,
                    "factors_bytes": (folder / "adapter_model.safetensors").stat().st_size,
                }
            )
            (folder / TABLE_FILE).unlink()
    return records


def markdown(lines: list[dict[str, Any]]) -> str:
    """Write a table of the last line of every task and format."""
    last = {(line["task"], line["format"]): line for line in lines}
    head = "| task | rows | max logit difference | mean | changed predictions | score | score from factors | table |"
    text = [head, "|---|---|---:|---:|---:|---:|---:|---:|"]
    for (task, name), line in last.items():
        share = f" ({line['share_of_validation_tokens']:.0%} of those of the validation data)"
        partial = share if name == PART else ""
        text.append(
            f"| {task} | {name}{partial} | {line['logit_difference_max']:.2g} | {line['logit_difference_mean']:.2g} | "
            f"{line['changed_predictions']} of {line['examples']} | {100 * line['score']:.2f} | "
            f"{100 * line['score_of_factors']:.2f} | {line['table_bytes'] / 1e6:.2f} MB |"
        )
    spread = ", ".join(f"{task} {line['logit_spread']:.2f}" for (task, name), line in last.items() if name == PART)
    text += ["", f"Differences are to the same adapter without a table; standard deviation of its logits: {spread}."]
    return "\n".join(text) + "\n"


def main() -> None:
    """Train, fuse, compare and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("PEFT_AOT_DATA"), help="folder in hub layout")
    parser.add_argument("--tasks", nargs="+", default=["trec", "sst2"], help="tasks of classification")
    parser.add_argument("--report-only", action="store_true", help="write the table, train nothing")
    arguments = parser.parse_args()
    quiet_libraries()
    data_dir = Path(arguments.data_dir).absolute() if arguments.data_dir else None
    with named_backbone() as model:
        for task in () if arguments.report_only else arguments.tasks:
            for record in measure(task, model, data_dir):
                append("storage_types", record)
    lines = [json.loads(line) for line in LINES.read_text(encoding="utf-8").splitlines()]
    (RESULTS / "storage_types.md").write_text(markdown(lines), encoding="utf-8")
    console.print(markdown(lines))


if __name__ == "__main__":
    main()

"""What does a training step cost, in time and memory, with AoT, LoRA, prefix tuning, BitFit and full fine-tuning?

A step is forward, backward and AdamW (fused, as `Trainer` has it), with the backbone's dropout and none of the
adapters', on token ids that are drawn like words (Zipf), at equal batch. Time: all methods in one process, one step
each per round in an order shuffled anew, as ratios to full fine-tuning and to LoRA of the same round. Memory: one
process per method; the most that adapting and three steps took beyond the loaded backbone (VmHWM of Linux), where
glibc gives memory back at once. Before anything is timed, all methods but prefix tuning, which starts at random, must
give the backbone's loss, and every trained value must get a gradient. The target is AoT below LoRA in both.

    python benchmarks/training_step.py [--backbones roberta minilm] [--shapes 32x64 16x128] [--precisions fp32 bf16]
        [--rounds N] [--methods full lora ...]

`roberta` has RoBERTa-base's size (12 x 768, V 50,265) and random weights; `minilm` is MiniLM-L6. Every combination adds
one JSON line to results/training_step.jsonl, with all samples.
"""

from __future__ import annotations

import argparse
import gc
import os
import subprocess
import sys
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftConfig, PrefixTuningConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification, RobertaConfig, RobertaForSequenceClassification

from _record import append
from _resident import EXACT, forget_peak, resident
from peft_aot import AoTConfig, BitFitConfig
from peft_aot.demo.carriers import locate_backbone
from peft_aot.timing import interleave, summarize

KIND = {"task_type": "SEQ_CLS"}
METHODS: dict[str, PeftConfig | None] = {
    "full": None,
    "bitfit": BitFitConfig(**KIND),
    "lora": LoraConfig(**KIND, r=16, lora_alpha=16, target_modules=["query", "value"]),
    "lora-all-linear": LoraConfig(**KIND, r=16, lora_alpha=16, target_modules="all-linear"),
    "prefix": PrefixTuningConfig(**KIND, num_virtual_tokens=20, prefix_projection=False),
    "aot": AoTConfig(**KIND, r=64),
    "aot-kron": AoTConfig(**KIND, r=16, reparam="kron"),
}
BACKBONES = {"roberta": "RoBERTa-base's size, random weights", "minilm": "all-MiniLM-L6-v2"}
TARGETS = ("aot", "aot-kron")
REFERENCES = ("full", "lora")
TOLERANCE = {"fp32": 1e-4, "bf16": 2e-2}
console = Console()


@dataclass(frozen=True)
class Case:
    """What is measured: a backbone, a batch and a precision."""

    backbone: str
    shape: str
    precision: str

    def load(self) -> nn.Module:
        """Return the backbone in memory of its own, with the same fresh head every time."""
        transformers.utils.logging.set_verbosity_error()
        torch.manual_seed(0)
        if self.backbone == "roberta":
            sizes = RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1)
            return RobertaForSequenceClassification(sizes)
        backbone: nn.Module = AutoModelForSequenceClassification.from_pretrained(locate_backbone())
        for parameter in backbone.parameters():
            parameter.data = parameter.data.clone()  # mapped until now
        return backbone

    def batch(self, vocabulary: int) -> dict[str, Tensor]:
        """Draw token ids (B, T) with a chance that falls with their rank, as in text, and labels."""
        examples, length = (int(side) for side in self.shape.split("x"))
        chances = 1 / torch.arange(1, vocabulary - 5).float()
        drawn = torch.multinomial(chances, examples * length, True, generator=torch.Generator().manual_seed(1))
        ids = drawn.view(examples, length) + 5  # neither padding nor other special tokens
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(examples) % 2}

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of a forward pass."""
        return torch.autocast("cpu", torch.bfloat16) if self.precision == "bf16" else nullcontext()


class Training:
    """A model with a method on it, and its optimizer."""

    def __init__(self, case: Case, method: str, backbone: nn.Module) -> None:
        self.case = case
        config = METHODS[method]
        self.batch = case.batch(backbone.get_input_embeddings().num_embeddings)  # type: ignore[operator]
        self.model = (backbone if config is None else get_peft_model(backbone, config)).train()  # type: ignore[arg-type]
        self.trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self.optimizer = torch.optim.AdamW(self.trained, lr=1e-5, fused=True)

    def loss(self) -> Tensor:
        """Make a forward pass."""
        with self.case.autocast():
            loss: Tensor = self.model(**self.batch).loss
        return loss

    def step(self) -> None:
        """Make one training step."""
        self.loss().backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def check(self) -> float:
        """Return the loss without dropout, once every trained value is known to get a gradient."""
        self.model.eval()
        loss = self.loss()
        loss.backward()
        if any(p.grad is None or not bool(torch.isfinite(p.grad).all()) for p in self.trained):
            raise RuntimeError("expected a finite gradient for every trained value; do not trust any timing")
        self.optimizer.zero_grad(set_to_none=True)
        self.model.train()
        return float(loss.detach())


def peak_memory(case: Case, method: str) -> int:
    """Adapt the backbone, make three steps, and return the most bytes that were resident beyond the backbone."""
    backbone = case.load()
    gc.collect()
    base = resident("VmRSS")
    forget_peak()
    training = Training(case, method, backbone)
    for _ in range(3):
        training.step()
    return resident("VmHWM") - base


def in_fresh_process(case: Case, method: str) -> int:
    """Measure the peak memory of one method in a process of its own."""
    task = ["--memory-of", method, "--backbones", case.backbone, "--shapes", case.shape, "--precisions", case.precision]
    done = subprocess.run(
        [sys.executable, __file__, *task], check=True, capture_output=True, text=True, env={**os.environ, **EXACT}
    )
    return int(done.stdout.split()[-1])


def measure(case: Case, methods: list[str], rounds: int) -> dict[str, Any]:
    """Measure one case and return its record."""
    memory = {}
    for method in methods:
        console.print(f"{case}: memory of {method} ...")
        memory[method] = in_fresh_process(case, method)
    trainings = {method: Training(case, method, case.load()) for method in methods}
    losses = {method: training.check() for method, training in trainings.items()}
    expected = losses["full"]
    if any(abs(loss - expected) > TOLERANCE[case.precision] for m, loss in losses.items() if m != "prefix"):
        raise RuntimeError(f"expected the backbone's loss of all, got {losses}; do not trust any timing")
    console.print(f"{case}: timing {rounds} rounds ...")
    steps: dict[str, Callable[[], object]] = {method: training.step for method, training in trainings.items()}
    timings = interleave(steps, "full", rounds=rounds, warmup=1)
    rows: dict[str, Any] = {}
    for method, training in trainings.items():
        rows[method] = {
            "trained": sum(parameter.numel() for parameter in training.trained),
            "peak_bytes": memory[method],
            "milliseconds": round(timings[method].milliseconds, 2),
            "samples_ms": [round(sample, 2) for sample in timings[method].samples],
        }
        for reference in REFERENCES:
            t = summarize(method, list(timings[method].samples), list(timings[reference].samples))
            rows[method][f"time_to_{reference}"] = round(t.ratio, 4)
            rows[method][f"time_to_{reference}_quartiles"] = [round(t.ratio_low, 4), round(t.ratio_high, 4)]
            rows[method][f"memory_to_{reference}"] = round(memory[method] / memory[reference], 4)
    ids = trainings["full"].batch["input_ids"]
    return {
        "backbone": BACKBONES[case.backbone],
        "batch": list(ids.shape),
        "distinct_tokens": len(ids.unique()),
        "precision": case.precision,
        "methods": rows,
    }


def show(record: dict[str, Any]) -> None:
    """Print one record, and where AoT is not below LoRA."""
    shape = " x ".join(str(side) for side in record["batch"])
    table = Table(title=f"{record['backbone']}, {shape}, {record['precision']}")
    for column in ("method", "trained", "step", "/ full", "/ LoRA (quartiles)", "memory", "/ full", "/ LoRA"):
        table.add_column(column, justify="right")
    for method, row in record["methods"].items():
        low, high = row["time_to_lora_quartiles"]
        table.add_row(
            method,
            f"{row['trained']:,}",
            f"{row['milliseconds']:.0f} ms",
            f"{row['time_to_full']:.2f}",
            f"{row['time_to_lora']:.3f} ({low:.3f}-{high:.3f})",
            f"{row['peak_bytes'] / 1e6:.0f} MB",
            f"{row['memory_to_full']:.2f}",
            f"{row['memory_to_lora']:.3f}",
        )
    console.print(table)
    for method in TARGETS:
        for what in ("time", "memory"):
            ratio = record["methods"].get(method, {}).get(f"{what}_to_lora", 0.0)
            if ratio >= 1:
                console.print(f"target missed: {method} takes {ratio:.3f} of LoRA's {what}")


def main() -> None:
    """Measure, show and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", choices=BACKBONES, default=list(BACKBONES))
    parser.add_argument("--shapes", nargs="+", default=["32x64", "16x128"], help="examples x tokens")
    parser.add_argument("--precisions", nargs="+", choices=TOLERANCE, default=list(TOLERANCE))
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS), help="full and lora come along")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count")
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    cases = [Case(b, s, p) for b in arguments.backbones for s in arguments.shapes for p in arguments.precisions]
    if arguments.memory_of:
        print(peak_memory(cases[0], arguments.memory_of))
        return
    methods = [name for name in METHODS if name in arguments.methods or name in REFERENCES]
    for case in cases:
        record = measure(case, methods, arguments.rounds)
        append("training_step", record)
        show(record)


if __name__ == "__main__":
    main()

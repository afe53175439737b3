"""What does a training step of PaFi cost beside full fine-tuning and PEFT's SHiRA? Peak memory and time.

Time: all methods in one process, one step each per round in an order shuffled anew, as ratios to full fine-tuning of
the same round. Memory: one process per method; the most that adapting and three steps took beyond the loaded backbone
(VmHWM of Linux).
Before anything is timed, all methods must give the same loss: each starts as the backbone.

    python benchmarks/pafi_training.py [--model PATH] [--rounds N]

Every run adds one JSON line to results/pafi_training.jsonl, with all samples.
"""

from __future__ import annotations

import argparse
import gc
import json
import platform
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, ShiraConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from _resident import forget_peak, resident
from peft_aot import PaFiConfig
from peft_aot.demo.carriers import locate_backbone
from peft_aot.sublayers import is_linear
from peft_aot.timing import interleave

RESULTS = Path(__file__).parent / "results" / "pafi_training.jsonl"
BATCH, LENGTH, SPARSITY = 16, 64, 0.005
METHODS = ("full", "pafi", "shira", "lora")
console = Console()


def adapt(method: str, backbone: nn.Module) -> nn.Module:
    """Return the backbone with a method on it; SHiRA and LoRA as close to PaFi's number of values as ranks allow."""
    if method == "full":
        return backbone
    inside = [n for n, m in backbone.named_modules() if is_linear(m) and ".layer." in n]
    config: Any = {
        "pafi": PaFiConfig(task_type="SEQ_CLS", sparsity=SPARSITY),
        "shira": ShiraConfig(task_type="SEQ_CLS", r=2, target_modules=inside),
        "lora": LoraConfig(task_type="SEQ_CLS", r=2, target_modules=inside),
    }[method]
    return get_peft_model(backbone, config)


def load(path: str) -> nn.Module:
    """Return the backbone, in memory rather than mapped, with the same fresh head every time."""
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    backbone: nn.Module = AutoModelForSequenceClassification.from_pretrained(path)
    for parameter in backbone.parameters():
        parameter.data = parameter.data.clone()
    return backbone


def prepare(method: str, backbone: nn.Module) -> tuple[nn.Module, Callable[[], Tensor]]:
    """Return a model and a function that makes one training step with it and returns the loss before the step."""
    model = adapt(method, backbone).eval()  # no dropout: equal losses
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5)
    ids = torch.randint(1000, 20000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.arange(BATCH) % 2}

    def step() -> Tensor:
        loss: Tensor = model(**batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    return model, step


def peak_memory(method: str, path: str) -> int:
    """Adapt the backbone, make three steps, and return the most bytes that were resident beyond the backbone."""
    backbone = load(path)
    gc.collect()
    base = resident("VmRSS")
    forget_peak()  # that of loading
    _, step = prepare(method, backbone)
    for _ in range(3):
        step()
    return resident("VmHWM") - base


def main() -> None:
    """Measure, show and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="path of the backbone; default: the MiniLM-L6 of the demo")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count")
    parser.add_argument("--memory-of", choices=METHODS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    path = arguments.model or str(locate_backbone())
    warnings.simplefilter("ignore")
    if arguments.memory_of:
        print(peak_memory(arguments.memory_of, path))
        return
    memory = {}
    for method in METHODS:
        console.print(f"memory of {method} ...")
        command = [sys.executable, __file__, "--model", path, "--memory-of", method]
        memory[method] = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])
    prepared = {method: prepare(method, load(path)) for method in METHODS}
    losses = {method: float(step()) for method, (_, step) in prepared.items()}
    if max(losses.values()) - min(losses.values()) > 1e-5:
        raise RuntimeError(f"expected equal losses before the first step, got {losses}; do not trust any timing")
    console.print(f"timing {arguments.rounds} rounds ...")
    timings = interleave({m: step for m, (_, step) in prepared.items()}, "full", rounds=arguments.rounds, warmup=1)
    trained = {m: sum(p.numel() for p in model.parameters() if p.requires_grad) for m, (model, _) in prepared.items()}
    table = Table(title=f"{Path(path).name}, batch {BATCH} x {LENGTH}, ratios to full fine-tuning")
    for column in ("method", "trained", "memory beyond backbone", "ratio", "step", "ratio (quartiles)"):
        table.add_column(column, justify="right")
    rows = {}
    for method in METHODS:
        t = timings[method]
        rows[method] = {
            "trained": trained[method],
            "peak_bytes": memory[method],
            "memory_ratio": round(memory[method] / memory["full"], 4),
            "step_ratio": round(t.ratio, 4),
            "step_ratio_quartiles": [round(t.ratio_low, 4), round(t.ratio_high, 4)],
            "samples_ms": [round(s, 2) for s in t.samples],
        }
        table.add_row(
            method,
            f"{trained[method]:,}",
            f"{memory[method] / 1e6:.0f} MB",
            f"{memory[method] / memory['full']:.2f}",
            f"{t.milliseconds:.0f} ms",
            f"{t.ratio:.2f} ({t.ratio_low:.2f}-{t.ratio_high:.2f})",
        )
    console.print(table)
    record = {
        "backbone": Path(path).name,
        "batch": [BATCH, LENGTH],
        "sparsity": SPARSITY,
        "methods": rows,
        "versions": {"peft": peft.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()

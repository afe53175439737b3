"""What do tables in a GPU's memory, and rows copied to it beside the computation, cost over the bare backbone?

RoBERTa-base's size (random weights, float16), 8 tasks in a `TaskBank` that share two fused tables; "device" (tables in
the GPU's memory), "staged" (rows copied, the next batch's prefetched while this one runs), "mmap" (copied when they are
needed) and "factors", beside LoRA in PEFT's mixed batches and in a merged backbone; eager, and the backbone and one
fused adapter compiled. The card's own copy rate from pinned memory is measured first, and the time that copying a
batch's rows must take by it is recorded beside each "staged": where the backbone takes longer, the copy is hidden
(docs/benchmarks.md). Answers are compared before anything is timed.

    python benchmarks/gpu_placements.py [--device cuda] [--quick]

Every point is a line of results/gpu_placements.jsonl, with all samples. Needs a CUDA GPU and 2 GB of disk;
`--device cpu --quick` goes through the same steps on the CPU, as a check of the script, and records nothing.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from peft import PeftModel
from rich.console import Console
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaModel

from _record import append, figures
from _tasks import aot_config, lora_config, save_tasks
from peft_aot import TaskBank, fuse
from peft_aot.timing import interleave

TASKS, TABLES = 8, 2
SHAPES = [(b, t) for b in (1, 8, 64) for t in (16, 128, 512)]
COPIED = 256 * 2**20
console = Console()


def backbone(device: str, quick: bool) -> nn.Module:
    """RoBERTa-base's size in float16, or a tiny one."""
    torch.manual_seed(0)
    small = {"num_hidden_layers": 3, "hidden_size": 64, "num_attention_heads": 2, "vocab_size": 500} if quick else {}
    sizes = {"vocab_size": 50_265, "max_position_embeddings": 514, "type_vocab_size": 1, **small}
    model: nn.Module = RobertaModel(RobertaConfig(**sizes), add_pooling_layer=False)
    return model.to(device, torch.float16 if device == "cuda" else torch.float32).eval()


def copy_rate(device: str) -> float:
    """Return the bytes per second that the device copies from pinned memory: the best of ten."""
    if device != "cuda":
        return 10e9
    source = torch.empty(COPIED, dtype=torch.uint8).pin_memory()
    target = torch.empty(COPIED, dtype=torch.uint8, device=device)
    times = []
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return COPIED / min(times)


def bank(make: Callable[[], nn.Module], folders: list[Path], placement: str) -> PeftModel:
    """Return a model with all tasks in a bank."""
    model = PeftModel.from_pretrained(make(), folders[0], adapter_name="first", use_table=False).eval()
    model.set_table_placement(placement)
    tasks = TaskBank(model)
    for task in range(TASKS):
        tasks.add(f"t{task}", folders[task % len(folders)])
    return model


def main() -> None:
    """Measure, show and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--quick", action="store_true", help="a tiny backbone, few rounds, nothing recorded")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    device, quick = arguments.device, arguments.quick
    if device == "cuda" and not torch.cuda.is_available():
        console.print("expected a CUDA GPU, got none: nothing to measure; --device cpu --quick checks the script")
        return
    make = functools.partial(backbone, device, quick)
    rate = copy_rate(device)
    console.print(f"pinned memory to {device}: {rate / 1e9:.1f} GB/s")
    with tempfile.TemporaryDirectory() as folder:
        on_cpu = functools.partial(backbone, "cpu", quick)
        folders = save_tasks(Path(folder, "aot"), on_cpu, aot_config(), TABLES)
        for path in folders:
            fuse(path, on_cpu(), dtype="float16", progress=False)
        lora = save_tasks(Path(folder, "lora"), on_cpu, lora_config(["query", "value"]), TASKS)
        bare = make()
        placements = ("device", "staged", "mmap", "factors")
        models: dict[str, nn.Module] = {f"AoT {name}": bank(make, folders, name) for name in placements}
        peer = PeftModel.from_pretrained(make(), lora[0], adapter_name="t0")
        for task, path in enumerate(lora[1:], 1):
            peer.load_adapter(str(path), adapter_name=f"t{task}")
        models["LoRA q,v"] = peer.eval()
        one = PeftModel.from_pretrained(make(), folders[0], table_placement="device").eval()
        compiled = {"backbone compiled": torch.compile(make()), "AoT fused compiled": torch.compile(one)}
        for batch, length in [(2, 16), (4, 32)] if quick else SHAPES:
            measure(bare, models, compiled, (batch, length), rate, arguments)


@torch.inference_mode()
def measure(
    bare: nn.Module,
    models: dict[str, nn.Module],
    compiled: dict[str, Callable[..., object]],
    shape: tuple[int, int],
    rate: float,
    arguments: argparse.Namespace,
) -> None:
    """Time one shape, and record it."""
    batch, length = shape
    device = torch.device(arguments.device)
    most = 500 if arguments.quick else 20_000
    ids = torch.randint(10, most, shape, generator=torch.Generator().manual_seed(1)).to(device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    names = [f"t{number % TASKS}" for number in range(batch)]

    def ahead() -> Tensor:
        """One batch, while the rows of the following one are on their way."""
        following = staged.prefetch(ids, names)
        found: Tensor = staged(**inputs, adapter_names=names, prefetched=handles[0]).last_hidden_state
        handles[0] = following
        return found

    staged = models["AoT staged"]
    handles = [staged.prefetch(ids, names)]
    calls: dict[str, Callable[[], object]] = {"backbone": lambda: bare(**inputs).last_hidden_state}
    for key, model in models.items():
        calls[key] = functools.partial(run, model, inputs, names)
    calls["AoT staged, prefetched"] = ahead
    for key, call in compiled.items():
        calls[key] = functools.partial(call, **inputs)
    expected, plain = calls["AoT factors"](), calls["backbone"]()
    for key in ("AoT device", "AoT staged", "AoT mmap", "AoT staged, prefetched"):
        found = calls[key]()
        if not isinstance(found, Tensor) or not isinstance(expected, Tensor) or not isinstance(plain, Tensor):
            raise TypeError(f"expected hidden states from {key}, got {type(found).__name__}")
        if float((found - expected).abs().max()) > 5e-2 or torch.equal(found, plain):
            raise RuntimeError(f"expected {key} to give the answers of the factors, got others")
    wait = torch.cuda.synchronize if device.type == "cuda" else None
    timings = interleave(calls, "backbone", rounds=3 if arguments.quick else 30, synchronize=wait)
    layers, width = bare.config.num_hidden_layers, bare.config.hidden_size
    distinct = sum(len(ids[[i for i, n in enumerate(names) if n == name]].unique()) for name in set(names))
    law = 1000 * 2 * layers * width * distinct / rate
    console.print(f"{batch} x {length}: {distinct} distinct rows, copied in {law:.2f} ms by the card's rate")
    for key, timing in timings.items():
        console.print(f"    {key:24s} {timing.milliseconds:8.2f} ms  {timing.ratio:.3f}")
    if not arguments.quick:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
        methods = {key: figures(timing) for key, timing in timings.items()}
        facts = {"device": name, "copy_bytes_per_second": rate, "copy_ms": round(law, 3), "distinct": distinct}
        append("gpu_placements", {**facts, "batch": batch, "length": length, "tasks": TASKS, "methods": methods})


def run(model: nn.Module, inputs: dict[str, Tensor], names: list[str]) -> Tensor:
    """Answer a batch."""
    found: Tensor = model(**inputs, adapter_names=names).last_hidden_state
    return found


if __name__ == "__main__":
    main()

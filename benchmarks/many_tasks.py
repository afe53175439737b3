"""What does a batch cost when 1, 8, 64, 256 or 1,024 tasks are loaded, under one memory budget?

Tasks are saved adapters without tables, in a `TaskBank`; rows that were computed are kept in 256 MB, whatever the
number of tasks. Batches are real sentences, 16 at a time, each for a task drawn at random: uniformly, or by Zipf's law
(the k-th task is asked for 1/k as often as the first). One model per number of tasks, one batch of each per round, in a
new order each round. Peer: LoRA in PEFT's mixed batches with the 25 adapters that were used last, others being loaded
when they are asked for. Answers are checked first: every example of a batch against its task alone.

    python benchmarks/many_tasks.py [--rounds N]

Every mix is a line of results/many_tasks.jsonl, with all samples. Needs 3 GB of disk and 6 GB of memory.
"""

from __future__ import annotations

import argparse
import collections
import functools
import os
import random
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import torch
import transformers
from peft import PeftModel
from rich.console import Console
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

from _record import append
from _tasks import aot_config, lora_config, save_tasks
from peft_aot import TaskBank
from peft_aot.demo.carriers import locate_backbone
from peft_aot.demo.data import TASKS, Sizes, prepare, read_examples

LOADED = (1, 8, 64, 256, 1024)
BATCH, BUDGET, PEER_ADAPTERS, PEER_ROUNDS = 16, 256 * 2**20, 25, 12
console = Console()


def backbone() -> nn.Module:
    """MiniLM-L6 without a head."""
    model: nn.Module = AutoModel.from_pretrained(str(locate_backbone()), add_pooling_layer=False)
    return model.eval()


class Bank:
    """AoT tasks in a bank."""

    def __init__(self, folders: list[Path]) -> None:
        before = psutil.Process().memory_info().rss
        self.model = PeftModel.from_pretrained(backbone(), folders[0], adapter_name="first").eval()
        self.model.set_table_placement("factors", BUDGET)
        self.bank = TaskBank(self.model)
        for task, folder in enumerate(folders):
            self.bank.add(str(task), folder)
        self.loaded_bytes = psutil.Process().memory_info().rss - before

    def run(self, batch: dict[str, Tensor], names: list[str]) -> Tensor:
        """Answer a batch."""
        with torch.inference_mode():
            found: Tensor = self.model(**batch, adapter_names=names).last_hidden_state
        return found


class Lora:
    """LoRA adapters, the last used of which are loaded."""

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders
        self.model = PeftModel.from_pretrained(backbone(), folders[0], adapter_name="0").eval()
        self.used: collections.OrderedDict[str, None] = collections.OrderedDict({"0": None})

    def run(self, batch: dict[str, Tensor], names: list[str]) -> Tensor:
        """Answer a batch, loading what is not there."""
        for name in dict.fromkeys(names):
            if name not in self.used:
                if len(self.used) >= PEER_ADAPTERS:
                    gone = next(iter(self.used))
                    del self.used[gone]
                    self.model.delete_adapter(gone)
                self.model.load_adapter(str(self.folders[int(name)]), adapter_name=name)
                self.model.eval()
            self.used[name] = None
            self.used.move_to_end(name)
        with torch.inference_mode():
            found: Tensor = self.model(**batch, adapter_names=names).last_hidden_state
        return found


def sentences() -> list[str]:
    """Real sentences: what people say to an assistant (SNIPS), as the demo finds them."""
    with tempfile.TemporaryDirectory() as folder:
        data = prepare(TASKS[0], Path(folder), Sizes())
        return [example.text for example in read_examples(data.file("train"))]


def draw(tasks: int, mix: str, rng: random.Random) -> list[str]:
    """Return the tasks of one batch."""
    weights = [1.0 if mix == "uniform" else 1 / (rank + 1) for rank in range(tasks)]
    return [str(task) for task in rng.choices(range(tasks), weights, k=BATCH)]


def check(model: Bank | Lora, batch: dict[str, Tensor], names: list[str]) -> None:
    """Refuse to time what gives another answer in a batch than alone."""
    mixed = model.run(batch, names)
    for row, name in enumerate(names):
        single = model.run({key: value[row : row + 1] for key, value in batch.items()}, [name])[0]
        kept = batch["attention_mask"][row].bool()
        if float((mixed[row] - single)[kept].abs().max()) > 1e-3:
            raise RuntimeError(f"expected the answer of task {name} alone, got another in a batch")


def main() -> None:
    """Measure, show and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=150, help="batches that count, per number of tasks")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        folders = save_tasks(Path(folder, "aot"), backbone, aot_config(), LOADED[-1])
        peers = save_tasks(Path(folder, "lora"), backbone, lora_config(["query", "value"]), LOADED[-1])
        for mix in ("zipf", "uniform"):
            measure(mix, folders, peers, arguments.rounds)


def measure(mix: str, folders: list[Path], peers: list[Path], rounds: int) -> None:
    """Time all numbers of tasks under one mix, and record them."""
    tokenizer = AutoTokenizer.from_pretrained(str(locate_backbone()))
    texts, rng = sentences(), random.Random(0)
    make: Callable[[], dict[str, Tensor]] = lambda: dict(  # noqa: E731
        tokenizer(rng.choices(texts, k=BATCH), return_tensors="pt", padding=True)
    )
    models = {tasks: Bank(folders[:tasks]) for tasks in LOADED}
    bare = backbone()
    samples: dict[str, list[float]] = collections.defaultdict(list)
    for tasks, model in models.items():
        check(model, make(), draw(tasks, mix, rng))
    for number in range(rounds + 5):
        batch = make()
        calls: dict[str, Callable[[], Any]] = {"backbone": functools.partial(plain, bare, batch)}
        for tasks, model in models.items():
            calls[str(tasks)] = functools.partial(model.run, batch, draw(tasks, mix, rng))
        for key in rng.sample(list(calls), len(calls)):
            start = time.perf_counter()
            calls[key]()
            if number >= 5:
                samples[key].append((time.perf_counter() - start) * 1000)
    peer = Lora(peers)
    check(peer, make(), draw(LOADED[-1], mix, rng))
    for _ in range(PEER_ROUNDS):
        batch, names = make(), draw(LOADED[-1], mix, rng)
        start = time.perf_counter()
        peer.run(batch, names)
        samples["LoRA, 1024 tasks, 25 loaded"].append((time.perf_counter() - start) * 1000)
    console.print(f"{mix}: {BATCH} sentences per batch, {BUDGET >> 20} MiB for rows")
    for key, times in samples.items():
        p50, p95, p99 = (percentile(times, share) for share in (0.5, 0.95, 0.99))
        rate = BATCH * 1000 / p50
        console.print(f"    {key:28s} p50 {p50:8.1f} ms   p95 {p95:8.1f}   p99 {p99:8.1f}   {rate:7.0f} texts/s")
    ratio = percentile(samples["1024"], 0.95) / percentile(samples["8"], 0.95)
    console.print(f"    p95 at 1,024 tasks is {ratio:.2f} of p95 at 8")
    append(
        "many_tasks",
        {
            "mix": mix,
            "batch": BATCH,
            "budget_bytes": BUDGET,
            "samples_ms": {key: [round(sample, 3) for sample in times] for key, times in samples.items()},
            "loaded_bytes": {str(tasks): model.loaded_bytes for tasks, model in models.items()},
            "factor_bytes": {str(tasks): model.bank.nbytes for tasks, model in models.items()},
            "cache": {str(tasks): hits(model) for tasks, model in models.items()},
        },
    )


def hits(model: Bank) -> dict[str, int]:
    """Return how many rows were found and how many computed."""
    cache = model.model.base_model.lookup.stacks[0].cache
    return {"hits": cache.hits, "misses": cache.misses} if cache is not None else {}


def percentile(times: list[float], share: float) -> float:
    """Return a percentile."""
    return statistics.quantiles(times, n=100, method="inclusive")[round(share * 100) - 1]


def plain(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Run the bare backbone."""
    with torch.inference_mode():
        found: Tensor = model(**batch).last_hidden_state
    return found


if __name__ == "__main__":
    main()

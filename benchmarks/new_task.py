"""How long does it take from a saved task to its first right answer, with 1, 100 or 1,000 tasks loaded?

Adding the task to a `TaskBank` and answering one sentence, beside `load_adapter` and a mixed batch of LoRA in PEFT with
1, 24 and 96 adapters loaded. Every answer is compared with that of the same task alone in a model of its own. One
measurement of each per round, in a new order each round.

    python benchmarks/new_task.py [--rounds N]

Adds a line to results/new_task.jsonl, with all samples.
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from rich.console import Console
from torch import Tensor
from transformers import AutoTokenizer

from _record import append
from _tasks import aot_config, lora_config, save_tasks
from many_tasks import backbone
from peft_aot import TaskBank
from peft_aot.demo.carriers import locate_backbone

LOADED = {"AoT": (1, 100, 1000), "LoRA": (1, 24, 96)}
console = Console()


def answer(model: PeftModel, batch: dict[str, Tensor], name: str) -> Tensor:
    """Answer a sentence for a task."""
    with torch.inference_mode():
        found: Tensor = model(**batch, adapter_names=[name]).last_hidden_state
    return found


class Aot:
    """A bank that some tasks are in."""

    def __init__(self, folders: list[Path]) -> None:
        self.model = PeftModel.from_pretrained(backbone(), folders[0], adapter_name="first").eval()
        self.bank = TaskBank(self.model)
        for task, folder in enumerate(folders):
            self.bank.add(str(task), folder)

    def add(self, folder: Path) -> None:
        """Add the new task."""
        self.bank.add("new", folder)

    def remove(self) -> None:
        """Remove it."""
        self.bank.remove("new")


class Lora:
    """A model that some adapters are on."""

    def __init__(self, folders: list[Path]) -> None:
        self.model = PeftModel.from_pretrained(backbone(), folders[0], adapter_name="0").eval()
        for task, folder in enumerate(folders[1:], 1):
            self.model.load_adapter(str(folder), adapter_name=str(task))
        self.model.eval()

    def add(self, folder: Path) -> None:
        """Load the new adapter."""
        self.model.load_adapter(str(folder), adapter_name="new")
        self.model.eval()

    def remove(self) -> None:
        """Delete it."""
        self.model.delete_adapter("new")


def main() -> None:
    """Measure, show and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25, help="rounds that count")
    rounds = parser.parse_args().rounds
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    batch = dict(AutoTokenizer.from_pretrained(str(locate_backbone()))(["wake me up at seven"], return_tensors="pt"))
    rng = random.Random(0)
    samples: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        aot = save_tasks(Path(folder, "aot"), backbone, aot_config(), LOADED["AoT"][-1] + 1)
        lora = save_tasks(Path(folder, "lora"), backbone, lora_config(["query", "value"]), LOADED["LoRA"][-1] + 1)
        models: dict[str, tuple[Aot | Lora, Path]] = {}
        expected: dict[str, Tensor] = {}
        for kind, maker, folders in (("AoT", Aot, aot), ("LoRA", Lora, lora)):
            alone = PeftModel.from_pretrained(backbone(), folders[-1], adapter_name="new").eval()
            expected[kind] = answer(alone, batch, "new")
            for loaded in LOADED[kind]:
                console.print(f"loading {loaded} tasks of {kind} ...")
                models[f"{kind}, {loaded} loaded"] = maker(folders[:loaded]), folders[-1]
        for number in range(rounds + 2):
            for key in rng.sample(list(models), len(models)):
                model, path = models[key]
                start = time.perf_counter()
                model.add(path)
                found = answer(model.model, batch, "new")
                taken = (time.perf_counter() - start) * 1000
                if float((found - expected[key.partition(",")[0]]).abs().max()) > 1e-3:
                    raise RuntimeError(f"expected the answer of the new task alone from {key}, got another")
                model.remove()
                if number >= 2:
                    samples.setdefault(key, []).append(taken)
    for key, times in samples.items():
        console.print(f"{key:22s} {statistics.median(times):8.1f} ms")
    append("new_task", {"samples_ms": {key: [round(t, 3) for t in times] for key, times in samples.items()}})


if __name__ == "__main__":
    main()

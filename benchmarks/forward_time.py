"""How long does the forward of a batch that mixes tasks take, over that of the bare backbone?

AoT from factors, from mapped tables (float16 and int8), from tables in memory and with rows kept; beside LoRA in PEFT's
mixed batches (query and value; all linear layers; under bfloat16 also with adapters in bfloat16), prompt and prefix
tuning (one task only) and a merged backbone. MiniLM-L6 (real weights) and a backbone of RoBERTa-base's size (random
weights: cost only). Token ids are random, which is the worst case for tables: hardly any token appears twice. Before
anything is timed, an example of each mixed batch is compared with the same example alone, and with the backbone.

    python benchmarks/forward_time.py [--backbones minilm roberta] [--dtypes float32 bfloat16] [--rounds N]

Every point is a line of results/forward_time.jsonl, with all samples. Of RoBERTa's size there are two tables on disk
(0.93 GB each) that all tasks share in turn, of MiniLM's eight. Needs 4 GB of disk, and memory for the tables.
"""

from __future__ import annotations

import argparse
import functools
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from peft import PeftConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from rich.console import Console
from torch import Tensor, nn
from transformers import AutoModel, RobertaConfig, RobertaModel

from _record import append, figures
from _tasks import aot_config, lora_config, save_tasks
from peft_aot import TaskBank, fuse
from peft_aot.demo.carriers import locate_backbone
from peft_aot.timing import interleave

POINTS = {
    "minilm": [(1, 16, 1), (8, 16, 1), (8, 16, 8), (8, 64, 1), (8, 64, 8), (32, 128, 1), (32, 128, 8), (32, 128, 32)],
    "roberta": [(1, 16, 1), (8, 64, 1), (8, 64, 8)],
}
TABLES = {"minilm": 8, "roberta": 2}
TOLERANCE = {"float32": 2e-3, "bfloat16": 8e-2}
SECONDS = 60.0
"""Of timing per point, about."""
console = Console()


def backbone(name: str, dtype: str) -> nn.Module:
    """Return a backbone without a head, the same each time."""
    torch.manual_seed(0)
    if name == "minilm":
        model: nn.Module = AutoModel.from_pretrained(str(locate_backbone()), add_pooling_layer=False)
    else:
        config = RobertaConfig(vocab_size=50_265, max_position_embeddings=514, type_vocab_size=1)
        model = RobertaModel(config, add_pooling_layer=False)
    return model.to(getattr(torch, dtype)).eval()


@dataclass
class Candidate:
    """What is timed.

    Attributes:
        model: The model.
        mixes: Whether it takes `adapter_names`.
        several: Whether it can run more than one task in a batch.
    """

    model: nn.Module
    mixes: bool
    several: bool = True

    def run(self, ids: Tensor, names: list[str]) -> Tensor:
        """Return the last hidden states (B, T, D) of the texts."""
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        with torch.inference_mode():
            out: Tensor = self.model(**batch, **({"adapter_names": names} if self.mixes else {})).last_hidden_state
        return out[:, -ids.shape[1] :]


def aot(
    make: Callable[[], nn.Module], folders: list[Path], tasks: int, placement: str, budget: int | None
) -> Candidate:
    """AoT tasks in a bank."""
    model = PeftModel.from_pretrained(make(), folders[0], adapter_name="first", use_table=False)
    model.set_table_placement(placement, budget)
    bank = TaskBank(model)
    for task in range(tasks):
        bank.add(f"t{task}", folders[task % len(folders)])
    return Candidate(model.eval(), True)


def lora(make: Callable[[], nn.Module], folders: list[Path], tasks: int, autocast: bool) -> Candidate:
    """LoRA adapters, as PEFT loads and mixes them."""
    options = {"autocast_adapter_dtype": autocast}
    model = PeftModel.from_pretrained(make(), folders[0], adapter_name="t0", **options)
    for task in range(1, tasks):
        model.load_adapter(str(folders[task]), adapter_name=f"t{task}", **options)
    return Candidate(model.eval(), True)


def alone(make: Callable[[], nn.Module], config: PeftConfig, merge: bool = False) -> Candidate:
    """One adapter of another kind."""
    torch.manual_seed(0)
    model: nn.Module = get_peft_model(make(), config).eval()
    return Candidate(model.merge_and_unload() if merge else model, mixes=False, several=False)


def candidates(name: str, dtype: str, folder: Path, tasks: int) -> Iterator[tuple[str, Candidate]]:
    """Yield everything that is timed for a backbone, with as many tasks loaded as one batch asks for at most."""
    make = functools.partial(backbone, name, dtype)
    half = sorted((folder / "aot").iterdir(), key=lambda path: int(path.name))
    small = sorted((folder / "aot-int8").iterdir(), key=lambda path: int(path.name))
    yield "backbone", Candidate(make(), mixes=False)
    yield "AoT factors", aot(make, half, tasks, "factors", None)
    yield "AoT factors, rows kept", aot(make, half, tasks, "factors", 2**29)
    yield "AoT mmap", aot(make, half, tasks, "mmap", None)
    yield "AoT mmap int8", aot(make, small, tasks, "mmap", None)
    yield "AoT ram", aot(make, half, min(tasks, 8), "ram", 8 * 2**30)
    query = sorted((folder / "lora-qv").iterdir(), key=lambda path: int(path.name))
    every = sorted((folder / "lora-all").iterdir(), key=lambda path: int(path.name))
    yield "LoRA q,v", lora(make, query, tasks, autocast=True)
    yield "LoRA all linear", lora(make, every, tasks, autocast=True)
    if dtype != "float32":
        yield "LoRA q,v, adapters in bfloat16", lora(make, query, tasks, autocast=False)
    yield "prompt tuning", alone(make, PromptTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=20))
    yield "prefix tuning", alone(make, PrefixTuningConfig(task_type="FEATURE_EXTRACTION", num_virtual_tokens=20))
    yield "LoRA merged", alone(make, lora_config(["query", "value"]), merge=True)


def prepare(name: str, folder: Path, tasks: int) -> None:
    """Write the saved tasks of a backbone."""
    make = functools.partial(backbone, name, "float32")
    for kind, dtype in (("aot", "float16"), ("aot-int8", "int8")):
        for path in save_tasks(folder / kind, make, aot_config(), TABLES[name]):
            console.print(f"fusing {kind} {path.name} ...")
            fuse(path, make(), dtype=dtype, progress=False)
    save_tasks(folder / "lora-qv", make, lora_config(["query", "value"]), tasks)
    save_tasks(folder / "lora-all", make, lora_config("all-linear"), tasks)


def check(found: dict[str, Candidate], ids: Tensor, names: list[str], tolerance: float) -> None:
    """Refuse to time what gives another answer in a mixed batch than alone, or the backbone's."""
    bare = found["backbone"].run(ids, names)
    for name, candidate in found.items():
        if not candidate.mixes:
            continue
        mixed = candidate.run(ids, names)
        for row in {0, len(names) - 1}:
            single = candidate.run(ids[row : row + 1], names[row : row + 1])[0]
            difference = float((mixed[row] - single).abs().max())
            if difference > tolerance or torch.equal(mixed[row], bare[row]):
                raise RuntimeError(
                    f"expected the answer of {names[row]} alone from {name}, got it {difference:.2g} off"
                )


def main() -> None:
    """Measure, show and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backbones", nargs="+", choices=list(POINTS), default=list(POINTS))
    parser.add_argument("--dtypes", nargs="+", choices=list(TOLERANCE), default=list(TOLERANCE))
    parser.add_argument("--rounds", type=int, default=None, help="by default as many as fit in a minute, at least 8")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    for name in arguments.backbones:
        most = max(tasks for _, _, tasks in POINTS[name])
        with tempfile.TemporaryDirectory() as folder:
            prepare(name, Path(folder), most)
            for dtype in arguments.dtypes:
                found = dict(candidates(name, dtype, Path(folder), most))
                for batch, length, tasks in POINTS[name]:
                    measure(found, name, dtype, (batch, length, tasks), arguments.rounds)
                del found


def measure(
    found: dict[str, Candidate], name: str, dtype: str, point: tuple[int, int, int], rounds: int | None
) -> None:
    """Time one point, and record it."""
    batch, length, tasks = point
    ids = torch.randint(1000, 20_000, (batch, length), generator=torch.Generator().manual_seed(1))
    names = [f"t{number * tasks // batch}" for number in range(batch)]
    able = {key: c for key, c in found.items() if (tasks == 1 or c.several) and (key != "AoT ram" or tasks <= 8)}
    check(able, ids, names, TOLERANCE[dtype])
    calls = {key: functools.partial(candidate.run, ids, names) for key, candidate in able.items()}
    if rounds is None:
        once = interleave({"backbone": calls["backbone"]}, "backbone", rounds=2, warmup=1)["backbone"].milliseconds
        rounds = int(min(60, max(8, SECONDS * 1000 / (once * len(calls) * 1.3))))
    timings = interleave(calls, "backbone", rounds=rounds)
    console.print(f"{name} {dtype} {batch} x {length}, {tasks} tasks, {rounds} rounds")
    for key, timing in timings.items():
        console.print(f"    {key:32s} {timing.ratio:.3f} ({timing.ratio_low:.3f}-{timing.ratio_high:.3f})")
    methods = {key: figures(timing) for key, timing in timings.items()}
    append(
        "forward_time",
        {"backbone": name, "dtype": dtype, "batch": batch, "length": length, "tasks": tasks, "methods": methods},
    )


if __name__ == "__main__":
    main()

"""What do frozen adapters of each method cost in inference, in switching and on disk? Ratios to the bare backbone.

Two adapters per method with random values, saved, loaded frozen and timed in one interleaved run with the backbone.
Before anything is timed: the adapters must change the logits, and the disabled model must give the backbone's, bit for
bit. Switching is `set_adapter(name, inference_mode=True)` there and back, halved.

    python benchmarks/latency_and_switching.py [--model PATH] [--rounds N]

Every run adds one JSON line to results/latency_and_switching.jsonl, with all samples.
"""

from __future__ import annotations

import argparse
import functools
import json
import platform
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from peft_aot import AoTConfig, BitFitConfig, HiWiConfig, HoulsbyConfig, PaFiConfig
from peft_aot.demo.carriers import locate_backbone
from peft_aot.info import AdapterInfo, describe
from peft_aot.sizes import format_bytes
from peft_aot.timing import interleave

RESULTS = Path(__file__).parent / "results" / "latency_and_switching.jsonl"
BATCH, LENGTH = 8, 32
FRESH = {"task_type": "SEQ_CLS", "init_weights": False}
METHODS: dict[str, PeftConfig] = {
    "bitfit": BitFitConfig(**FRESH),
    "hiwi": HiWiConfig(**FRESH),
    "pafi": PaFiConfig(**FRESH, save_dtype="float16"),
    "houlsby": HoulsbyConfig(**FRESH),
    "aot": AoTConfig(**FRESH),
    "lora": LoraConfig(task_type="SEQ_CLS", r=16, init_lora_weights=False, target_modules=["query", "value", "q", "v"]),
}
console = Console()


def load(path: str) -> nn.Module:
    """Return the bare backbone with the same fresh head every time."""
    transformers.utils.logging.set_verbosity_error()
    torch.manual_seed(0)
    backbone: nn.Module = AutoModelForSequenceClassification.from_pretrained(path).eval()
    return backbone


def prepare(config: PeftConfig, path: str, folder: Path) -> tuple[PeftModel, int]:
    """Save two adapters and return a model that has loaded them, and the bytes of one, without its head."""
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        model = get_peft_model(load(path), config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter *= 0.1
        model.save_pretrained(str(folder / name))
    loaded = PeftModel.from_pretrained(load(path), folder / "one", adapter_name="one")
    loaded.load_adapter(str(folder / "two"), adapter_name="two")
    loaded.base_model.set_adapter("one", inference_mode=True)
    info = describe(folder / "one")
    if not isinstance(info, AdapterInfo):
        raise TypeError(f"expected an adapter in {folder / 'one'}, got a table")
    return loaded.eval(), info.own_bytes


def main() -> None:
    """Measure, show and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=None, help="path of the backbone; default: the MiniLM-L6 of the demo")
    parser.add_argument("--rounds", type=int, default=60, help="rounds that count")
    arguments = parser.parse_args()
    path = arguments.model or str(locate_backbone())
    warnings.simplefilter("ignore")
    ids = torch.randint(1000, 20000, (BATCH, LENGTH), generator=torch.Generator().manual_seed(1))
    batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    @torch.inference_mode()
    def logits(model: nn.Module) -> Tensor:
        found: Tensor = model(**batch).logits
        return found

    bare = load(path)
    expected = logits(bare)
    models: dict[str, PeftModel] = {}
    stored: dict[str, int] = {}
    with tempfile.TemporaryDirectory() as folder:
        for method, config in METHODS.items():
            console.print(f"preparing {method} ...")
            models[method], stored[method] = prepare(config, path, Path(folder, method))
    for method, model in models.items():
        if torch.allclose(logits(model), expected, atol=1e-4):
            raise RuntimeError(f"expected {method} to change the logits, got those of the backbone")
        with model.disable_adapter():
            if not torch.equal(logits(model), expected):
                raise RuntimeError(f"expected {method}, disabled, to be the backbone bit for bit, got other logits")
        model.base_model.set_adapter("one", inference_mode=True)
    console.print(f"timing {arguments.rounds} rounds ...")
    candidates = {"backbone": functools.partial(logits, bare)}
    candidates |= {method: functools.partial(logits, model) for method, model in models.items()}
    timings = interleave(candidates, "backbone", rounds=arguments.rounds)
    switching = {}
    for method, model in models.items():
        samples = []
        for _ in range(12):
            start = time.perf_counter()
            for name in ("two", "one"):
                model.base_model.set_adapter(name, inference_mode=True)
            samples.append((time.perf_counter() - start) * 500)
        switching[method] = sorted(samples[2:])
    table = Table(title=f"{Path(path).name}, batch {BATCH} x {LENGTH}, frozen adapters")
    for column in ("method", "inference / backbone (quartiles)", "switching", "stored, without head"):
        table.add_column(column, justify="right")
    rows: dict[str, Any] = {}
    for method in METHODS:
        t, switch = timings[method], switching[method]
        rows[method] = {
            "ratio": round(t.ratio, 4),
            "ratio_quartiles": [round(t.ratio_low, 4), round(t.ratio_high, 4)],
            "samples_ms": [round(s, 3) for s in t.samples],
            "switching_ms": round(switch[len(switch) // 2], 3),
            "switching_samples_ms": [round(s, 3) for s in switch],
            "stored_bytes": stored[method],
        }
        table.add_row(
            method,
            f"{t.ratio:.3f} ({t.ratio_low:.3f}-{t.ratio_high:.3f})",
            f"{switch[len(switch) // 2]:.2f} ms",
            format_bytes(stored[method]),
        )
    console.print(table)
    record = {
        "backbone": Path(path).name,
        "batch": [BATCH, LENGTH],
        "backbone_samples_ms": [round(s, 3) for s in timings["backbone"].samples],
        "methods": rows,
        "versions": {"peft": peft.__version__, "torch": torch.__version__, "transformers": transformers.__version__},
        "machine": {"cpu": platform.processor() or platform.machine(), "threads": torch.get_num_threads()},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


if __name__ == "__main__":
    main()

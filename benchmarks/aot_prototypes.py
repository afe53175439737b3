"""Would AoT-FC gain from what is not in the code? Each variant patches how rows are computed; MiniLM-L6.

Whitened embeddings, other learning rates of W1, a W1 that is not trained, one W1 for all blocks, dropout on the hidden
units. r = 64, 5e-3 (SST-2 also 3e-3), the head at 5e-2, 2,000 training and 1,000 validation examples, 3 epochs, batch
32. Each finished run is a line of `results/aot_prototypes.jsonl`: an interrupted benchmark goes on where it stopped.

    python benchmarks/aot_prototypes.py --data-dir DIR

`DIR` is a folder in hub layout (default: the environment variable PEFT_AOT_DATA); without one the hub is read.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor
from transformers import AutoModel

from _backbone import named_backbone
from peft_aot.aot.reparam import Bottleneck
from peft_aot.cli.quiet import quiet_libraries
from peft_aot.compare.execute import execute
from peft_aot.compare.options import CompareOptions
from peft_aot.compare.records import Run
from peft_aot.ops import ACTIVATIONS, unit_rows

RESULTS = Path(__file__).parent / "results" / "aot_prototypes.jsonl"
console = Console()


@dataclass(frozen=True)
class Prototype:
    """What is changed; the fields' defaults change nothing."""

    whiten: bool = False
    w1_speed: float = 1.0
    w1_trained: bool = True
    w1_shared: bool = False
    hidden_dropout: float = 0.0


AS_IT_IS = "as it is"
WHITENED = "embeddings whitened: centred, times the inverse root of their covariance, to unit length"
PROTOTYPES = {
    AS_IT_IS: Prototype(),
    WHITENED: Prototype(whiten=True),
    "W1 learns 3 times as fast": Prototype(w1_speed=3.0),
    "W1 learns a third as fast": Prototype(w1_speed=0.33),
    "W1 stays as it was drawn": Prototype(w1_trained=False),
    "one W1 for all blocks": Prototype(w1_shared=True),
    "dropout 0.1 on the hidden units": Prototype(hidden_dropout=0.1),
}
RUNS = [
    *((name, task, 5e-3, 0) for task in ("trec", "banking77") for name in PROTOTYPES),
    *((name, task, 5e-3, seed) for task in ("trec", "banking77") for seed in (1, 2) for name in (AS_IT_IS, WHITENED)),
    *((name, "sst2", rate, 0) for rate in (5e-3, 3e-3) for name in (AS_IT_IS, WHITENED)),
]


def whitener(model: str) -> tuple[Tensor, Tensor]:
    """Return the mean (E,) of a backbone's embeddings, and the inverse root (E, E) of their covariance."""
    embeddings = AutoModel.from_pretrained(model).get_input_embeddings().weight.detach().float()
    values, vectors = torch.linalg.eigh(torch.cov(embeddings.T).double())
    return embeddings.mean(0), (vectors / (values + 1e-6 * values.mean()).sqrt() @ vectors.T).float()


@contextmanager
def patched(prototype: Prototype, model: str) -> Iterator[None]:
    """For a while, let every bottleneck compute as a prototype does."""
    init, forward = Bottleneck.__init__, Bottleneck.bottleneck
    mean, root = whitener(model) if prototype.whiten else (torch.zeros(()), torch.zeros(()))
    first: list[Bottleneck] = []

    def prepared(self: Bottleneck, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        first.append(self)
        with torch.no_grad():
            self.w1.div_(prototype.w1_speed)  # Adam's steps do not shrink with it

    def bottleneck(self: Bottleneck, inputs: Tensor) -> Tensor:
        x = inputs.to(self.w1.dtype)
        x = unit_rows((x - mean) @ root if prototype.whiten else x)
        w1 = first[0].w1 if prototype.w1_shared else self.w1
        w1 = w1 if prototype.w1_trained else w1.detach()
        x = F.dropout(x, self.dropout, self.training)
        hidden = ACTIVATIONS[self.activation](x @ (prototype.w1_speed * w1) + self.b1)
        hidden = F.dropout(hidden, prototype.hidden_dropout, self.training) if prototype.hidden_dropout else hidden
        return hidden @ (self.scale * self.w2) + self.b2

    Bottleneck.__init__, Bottleneck.bottleneck = prepared, bottleneck  # type: ignore[method-assign]
    try:
        yield
    finally:
        Bottleneck.__init__, Bottleneck.bottleneck = init, forward  # type: ignore[method-assign]


def main() -> None:
    """Run what has not been run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("PEFT_AOT_DATA"), help="folder in hub layout")
    arguments = parser.parse_args()
    quiet_libraries()
    data_dir = Path(arguments.data_dir).absolute() if arguments.data_dir else None
    lines = [json.loads(line) for line in RESULTS.read_text(encoding="utf-8").splitlines()] if RESULTS.exists() else []
    done = {(line["variant"], line["task"], json.dumps(line["settings"]), line["seed"]) for line in lines}
    with named_backbone() as model:
        options = CompareOptions(
            model=model,
            output=RESULTS.parent,
            tasks=("trec", "banking77", "sst2"),
            data_dir=data_dir,
            epochs=3,
            patience=None,
            batch_size=32,
            limit_train=2000,
            limit_validation=1000,
        )
        for variant, task, rate, seed in RUNS:
            settings = {"learning_rate": rate, "rank": 64, "head_learning_rate": 0.05}
            if (variant, task, json.dumps(settings), seed) in done:
                continue
            with patched(PROTOTYPES[variant], model):
                record = execute(options, Run(task, "aot", 0, settings, seed))
            line = {
                "variant": variant, "task": task, "method": "aot", "settings": settings, "seed": seed,
                "score": record.score, "history": record.history, "train_seconds": record.train_seconds,
            }  # fmt: skip
            with RESULTS.open("a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")
            console.print(f"{task} {variant} at {rate:g}, seed {seed}: {record.score}")


if __name__ == "__main__":
    main()

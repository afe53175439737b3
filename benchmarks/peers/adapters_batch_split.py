"""What does a batch of mixed tasks cost with AdapterHub's `BatchSplit`? Ratios to the bare backbone.

Every task is a bottleneck adapter (seq_bn) or a LoRA adapter (of query and value, rank 8), as the library sets them up
but with random weights; the backbone's are random too, since only cost is measured, to the last hidden state. Before
anything is timed, a mixed batch must equal its adapters one at a time (within 1e-4; 0.05 in bfloat16), and every
example must differ from the backbone's by ten times that. One task needs no splitting, and is timed without.

    python benchmarks/peers/adapters_batch_split.py [--backbone NAME] [--dtype NAME] [--shapes 1x16,8x64] ...

Adds one JSON line per batch, number of tasks and method to results/peers.jsonl. README.md: how to install.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator

import adapters
import torch
from _protocol import BACKBONES, Point, check, load, parse, record
from adapters.composition import BatchSplit
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PreTrainedModel
from transformers.utils import logging

METHODS = ("seq_bn", "lora")
PACKAGES = ("adapters", "transformers", "torch")


def build(backbone: str, dtype: str) -> PreTrainedModel:
    """Return the backbone with the same random weights every time."""
    torch.manual_seed(0)
    kind, sizes = BACKBONES[backbone]
    model: PreTrainedModel = AutoModel.from_config(AutoConfig.for_model(kind, **sizes), add_pooling_layer=False)
    return model.to(getattr(torch, dtype)).eval()


def adapt(model: PreTrainedModel, method: str, tasks: int) -> PreTrainedModel:
    """Give a backbone random adapters called "0", "1" and so on."""
    adapters.init(model)
    backbone = {id(parameter) for parameter in model.parameters()}
    for task in range(tasks):
        model.add_adapter(str(task), config=method)
    model.to(model.dtype).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if id(parameter) not in backbone:
                nn.init.normal_(parameter, std=0.1)
    return model


@torch.inference_mode()
def hidden(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """Return the last hidden state (B, T, D)."""
    states: Tensor = model(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
    return states


def activate(model: PreTrainedModel, point: Point) -> None:
    """Set up the tasks of a batch."""
    names = [str(task) for task in range(point.tasks)]
    model.set_active_adapters(BatchSplit(*names, batch_sizes=point.sizes()) if point.tasks > 1 else names[0])


def one_at_a_time(model: PreTrainedModel, point: Point) -> Iterator[Tensor]:
    """Yield the hidden states of each task's examples with its adapter alone."""
    for task, ids in enumerate(point.ids().split(point.sizes())):
        model.set_active_adapters(str(task))
        yield hidden(model, ids)


def main() -> None:
    """Check, measure, show and record."""
    arguments = parse(__doc__)
    logging.set_verbosity_error()
    interleave = load("timing").interleave
    most = max(point.tasks for point in arguments.points)
    bare = build(arguments.backbone, arguments.dtype)
    models = {method: adapt(build(arguments.backbone, arguments.dtype), method, most) for method in METHODS}
    for point in arguments.points:
        ids = point.ids()
        for model in models.values():
            alone = list(one_at_a_time(model, point))
            activate(model, point)
            check(point, arguments.dtype, hidden(model, ids), alone, hidden(bare, ids))
        candidates = {"backbone": functools.partial(hidden, bare, ids)}
        candidates |= {method: functools.partial(hidden, model, ids) for method, model in models.items()}
        timings = interleave(candidates, "backbone", rounds=arguments.rounds)
        for method in METHODS:
            record(
                arguments.output, PACKAGES, timings, method,
                peer="adapters BatchSplit" if point.tasks > 1 else "adapters",
                backbone=arguments.backbone, dtype=arguments.dtype,
                batch=point.batch, length=point.length, tasks=point.tasks,
                attention=bare.config._attn_implementation,
            )  # fmt: skip


if __name__ == "__main__":
    main()

"""What does a batch of mixed tasks cost in vLLM on the CPU, with a LoRA adapter per task? Ratios to its bare backbone.

Both sides are vLLM engines in one process that embed the whole batch in one step, uncompiled; the reference has LoRA
switched off. Weights are random, since only cost is measured: adapters are of query and value, rank 8. Before anything
is timed, a mixed batch must equal its adapters one at a time (within 1e-4; 0.05 in bfloat16), and every example must
differ from the backbone's by ten times that. Times include vLLM's own scheduling, on both sides.

    python benchmarks/peers/vllm_lora.py [--backbone NAME] [--dtype NAME] [--shapes 1x16,8x64] [--tasks 1,8,B] ...

Adds one JSON line per batch and number of tasks to results/peers.jsonl. README.md: how to install.
"""

from __future__ import annotations

import functools
import json
import os
import tempfile
from pathlib import Path

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB; an encoder needs none
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # so that both engines, and torch, use the same threads
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # both engines in this process
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}

import torch  # noqa: E402
from _protocol import BACKBONES, Point, check, load, parse, record  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from tokenizers import Tokenizer  # noqa: E402
from tokenizers.models import WordLevel  # noqa: E402
from torch import Tensor  # noqa: E402
from transformers import AutoConfig, AutoModel, PreTrainedTokenizerFast  # noqa: E402
from vllm import LLM, PoolingParams  # noqa: E402
from vllm.lora.request import LoRARequest  # noqa: E402

RANK = 8
PACKAGES = ("vllm-cpu", "transformers", "torch")


def write_backbone(folder: Path, backbone: str) -> Path:
    """Save a backbone with random weights, and return where."""
    torch.manual_seed(0)
    kind, sizes = BACKBONES[backbone]
    config = AutoConfig.for_model(kind, **sizes)
    AutoModel.from_config(config, add_pooling_layer=False).save_pretrained(folder / "backbone")
    # engines insist on a tokenizer, though batches come as ids
    words = Tokenizer(WordLevel({"<unk>": 0}, unk_token="<unk>"))
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="<unk>").save_pretrained(folder / "backbone")
    return folder / "backbone"


def write_adapters(folder: Path, backbone: str, tasks: int) -> list[LoRARequest]:
    """Save random adapters as PEFT would, and return what asks for them."""
    kind, sizes = BACKBONES[backbone]
    config = AutoConfig.for_model(kind, **sizes)
    parts = ["query", "value"]
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": parts, "bias": "none"}
    generator = torch.Generator().manual_seed(1)
    requests = []
    for task in range(tasks):
        weights = {}
        for layer in range(config.num_hidden_layers):
            for part in parts:
                name = f"base_model.model.encoder.layer.{layer}.attention.self.{part}"
                for side, shape in (("lora_A", (RANK, config.hidden_size)), ("lora_B", (config.hidden_size, RANK))):
                    weights[f"{name}.{side}.weight"] = torch.randn(shape, generator=generator) * 0.1
        path = folder / str(task)
        path.mkdir()
        save_file(weights, path / "adapter_model.safetensors")
        (path / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
        requests.append(LoRARequest(str(task), task + 1, str(path)))
    return requests


def start(path: Path, dtype: str, points: list[Point], tasks: int) -> LLM:
    """Start an engine that takes every batch in one step; with no tasks, without LoRA."""
    lora = {"enable_lora": True, "max_loras": tasks, "max_cpu_loras": tasks, "max_lora_rank": RANK} if tasks else {}
    return LLM(
        str(path), runner="pooling", dtype=dtype, enforce_eager=True,
        max_model_len=max(point.length for point in points), max_num_seqs=max(point.batch for point in points),
        max_num_batched_tokens=max(point.batch * point.length for point in points), **lora,
    )  # fmt: skip


def embed(engine: LLM, ids: Tensor, adapters: list[LoRARequest] | None = None) -> Tensor:
    """Return the last hidden state of the first token (B, D), each example under its adapter."""
    prompts = [{"prompt_token_ids": tokens} for tokens in ids.tolist()]
    plain = PoolingParams(use_activation=False)  # not normalized
    found = engine.embed(prompts, pooling_params=plain, lora_request=adapters, use_tqdm=False)
    return torch.tensor([one.outputs.embedding for one in found])


def main() -> None:
    """Check, measure, show and record."""
    arguments = parse(__doc__)
    interleave = load("timing").interleave
    most = max(point.tasks for point in arguments.points)
    with tempfile.TemporaryDirectory() as folder:
        path = write_backbone(Path(folder), arguments.backbone)
        requests = write_adapters(Path(folder), arguments.backbone, most)
        bare = start(path, arguments.dtype, arguments.points, 0)
        engine = start(path, arguments.dtype, arguments.points, most)
        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)  # engines set it, too
        for point in arguments.points:
            ids = point.ids()
            adapters = [requests[task] for task, size in enumerate(point.sizes()) for _ in range(size)]
            split = ids.split(point.sizes())
            alone = [embed(engine, part, [requests[task]] * len(part)) for task, part in enumerate(split)]
            check(point, arguments.dtype, embed(engine, ids, adapters), alone, embed(bare, ids))
            candidates = {
                "backbone": functools.partial(embed, bare, ids),
                "lora": functools.partial(embed, engine, ids, adapters),
            }
            timings = interleave(candidates, "backbone", rounds=arguments.rounds)
            record(
                arguments.output, PACKAGES, timings, "lora",
                peer="vLLM on the CPU", backbone=arguments.backbone, dtype=arguments.dtype,
                batch=point.batch, length=point.length, tasks=point.tasks,
            )  # fmt: skip


if __name__ == "__main__":
    main()

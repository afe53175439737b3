"""What a method costs at inference: its time over the bare backbone's, both timed in turn in one run.

The time does not depend on the values of an adapter, so that it is measured once per method, on fresh adapters that
change the output where that matters (AoT), in float32, on one batch of real texts. Each is
saved and loaded again, as it is served. What PEFT could fold into weights (LoRA, IA3) is timed as it was loaded, and
AoT twice: from its factors and from its fused table, whose logits are compared first.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from peft import PeftModel, get_peft_model

from peft_aot.aot.config import AoTConfig
from peft_aot.features import collator, encode
from peft_aot.loading import load_backbone, pick_device
from peft_aot.machine import describe_processor
from peft_aot.method import configure
from peft_aot.methods import get_method
from peft_aot.rendering import Item
from peft_aot.timing import interleave

from .execute import now, versions
from .options import CompareOptions
from .records import CostRecord
from .space import request_of

BATCH = 16
MAX_LENGTH = 128
LABELS = ("no", "yes")
TOLERANCE = 2e-2  # what float16 rows may change in a logit of random adapters
Batch = dict[str, torch.Tensor]


def measure_cost(
    options: CompareOptions, method_name: str, settings: dict[str, Any], items: Sequence[Item]
) -> list[CostRecord]:
    """Time one method beside the bare backbone.

    Args:
        options: The comparison; gives the backbone and the number of rounds.
        method_name: The method.
        settings: A point of its search space.
        items: What the batch reads: texts or pairs.

    Returns:
        One record, or two for AoT: "table" and "factors".

    Raises:
        ValueError: Fused and unfused AoT disagree, so that a timing would mean nothing.
    """
    method, device = get_method(method_name), pick_device()
    bare = load_backbone(options.model, "classification", LABELS)
    room = bare.tokenizer.model_max_length - (settings.get("virtual_tokens", 20) if method.virtual_tokens else 0)
    features = encode(items[:BATCH], bare.tokenizer, "classification", min(options.max_length or MAX_LENGTH, room))
    rows = [{name: value for name, value in row.items() if name != "labels"} for row in features.rows]
    batch = {name: value.to(device) for name, value in collator(bare.tokenizer, "classification")(rows).items()}
    adapted = load_backbone(options.model, "classification", LABELS)
    request = request_of(settings, str(adapted.model.config.model_type), "classification", adapted.new_modules)
    config = configure(method, request)
    models: dict[str, torch.nn.Module] = {"bare": bare.model}
    with tempfile.TemporaryDirectory(prefix="peft-aot-cost-") as folder:
        if config is None:
            models[""] = adapted.model
        elif not isinstance(config, AoTConfig):
            get_peft_model(adapted.model, config).save_pretrained(folder)
            models[""] = _loaded(options.model, folder)
        else:
            config = dataclasses.replace(config, init_weights=False)
            fused = config.bottleneck_input != "hidden"
            get_peft_model(adapted.model, config).save_pretrained(folder, fuse=fused)
            models["factors"] = _loaded(options.model, folder, use_table=False)
            if fused:
                models["table"] = _loaded(options.model, folder)
        calls: dict[str, Callable[[], object]] = {}
        for name, model in models.items():
            calls[name] = partial(_logits, model.eval().to(device), batch)
        _check_equal(models, batch)
        timings = interleave(
            calls,
            reference="bare",
            rounds=options.timing_rounds,
            synchronize=None if device.type == "cpu" else torch.accelerator.synchronize,
        )
    return [
        CostRecord(
            method=method_name,
            variant=name,
            ratio=timing.ratio,
            ratio_low=timing.ratio_low,
            ratio_high=timing.ratio_high,
            milliseconds=timing.milliseconds,
            bare_milliseconds=timings["bare"].milliseconds,
            samples=[round(sample, 3) for sample in timing.samples],
            batch=list(batch["input_ids"].shape),
            settings=settings,
            protocol=options.protocol(),
            versions=versions(),
            machine=describe_processor(device),
            finished=now(),
        )
        for name, timing in timings.items()
        if name != "bare"
    ]


def _loaded(model: str, folder: str, **kwargs: Any) -> torch.nn.Module:
    """Load a saved adapter as a user does: frozen, for inference."""
    backbone = load_backbone(model, "classification", LABELS).model
    loaded: torch.nn.Module = PeftModel.from_pretrained(backbone, folder, **kwargs)
    return loaded


def _logits(model: torch.nn.Module, batch: Batch) -> torch.Tensor:
    with torch.inference_mode():
        logits: torch.Tensor = model(**batch).logits
    return logits


def _check_equal(models: dict[str, torch.nn.Module], batch: Batch) -> None:
    outputs = {name: _logits(model, batch) for name, model in models.items()}
    for name, logits in outputs.items():
        if not bool(torch.isfinite(logits).all()):
            raise ValueError(f"expected finite logits of {name or 'the method'}, got {logits.tolist()}; do not time it")
    if "table" in outputs:
        difference = float((outputs["table"] - outputs["factors"]).abs().max())
        if difference > TOLERANCE:
            raise ValueError(
                f"expected fused and unfused AoT to differ by at most {TOLERANCE}, got {difference:.2g}; do not time it"
            )

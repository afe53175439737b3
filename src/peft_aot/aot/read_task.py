"""Reading a saved adapter as a task of a bank: checked, and laid out for inference, without touching the model."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from peft import PeftConfig
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, PeftType
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor, nn

from peft_aot.backbone import input_embedding
from peft_aot.routing import RoutedHead, fit_linears
from peft_aot.source import Source
from peft_aot.staging import finish
from peft_aot.tuner import check_finite

from .banked import BankedTask
from .config import CANNOT_FUSE_HIDDEN, AoTConfig
from .files import find_table
from .reparam import rows_from
from .stack_rows import StackRows
from .stacked import StackedFactors

PREFIX = "base_model.model."
HeadReader: TypeAlias = Callable[[Source, AoTConfig, Mapping[str, Tensor]], Mapping[str, nn.Module]]
"""Makes a task's heads, by name, of where it is, its configuration, and what is saved beside its factors."""


def read_task(
    source: Source, like: AoTConfig, stacks: Sequence[StackRows], read_heads: HeadReader, use_table: bool
) -> BankedTask:
    """Read a saved adapter.

    Args:
        source: Where it is.
        like: The configuration of an adapter that is on the model.
        stacks: The stacks of the model, all of whose blocks that the adapter knows are wrapped.
        read_heads: Makes its heads.
        use_table: Whether to use its table, if it has one.

    Raises:
        FileNotFoundError: No weights there.
        TypeError: Another method's adapter.
        ValueError: It does not fit the model.
    """
    if source.folder is not None:
        finish(source.folder, CONFIG_NAME)
    if source.file(CONFIG_NAME) is None:
        raise FileNotFoundError(
            f"expected {CONFIG_NAME} in {source.model_id}, got none; pass a folder or repository with a saved adapter"
        )
    config = _configuration(source)
    if not isinstance(config, AoTConfig):
        raise TypeError(
            f"expected an AoT adapter in {source.model_id}, got {PeftType(config.peft_type).value}; a bank "
            f"holds tables and factors of AoT, train one with AoTConfig"
        )
    if config.bottleneck_input == "hidden":
        raise ValueError(f"{CANNOT_FUSE_HIDDEN}, in {source.model_id}; load it with load_adapter")
    config.check_alpha()
    config.check_backbone(like.backbone_sizes, "the model")
    config.inference_mode = True
    weights = source.file(SAFETENSORS_WEIGHTS_NAME)
    if weights is None:
        raise FileNotFoundError(
            f"expected {SAFETENSORS_WEIGHTS_NAME} in {source.model_id}, got none; save the adapter with "
            f"safe_serialization=True"
        )
    state = _load(weights)
    check_finite(state)
    factors, rest = _split(state)
    names = _names_here(factors, {name for layers in stacks for name in layers.slots})
    factors = {names[block]: of_block for block, of_block in factors.items()}
    stacked = {layers.stack: _stack(config, layers, factors) for layers in stacks}
    unknown = factors.keys() - {name for layers in stacks for name in layers.slots}
    if unknown:
        raise ValueError(
            f"expected an adapter for the wrapped blocks {stacks[0].blocks[0]} ... {stacks[-1].blocks[-1]}, got one "
            f"for {sorted(unknown)[0]} too; give the model's first adapter all blocks, or use load_adapter"
        )
    own = read_heads(source, config, rest)
    table = find_table(source, config, stacks, lambda layers: stacked[layers.stack], names) if use_table else None
    return BankedTask(config.vocab_size or 0, own, stacked, table)


def _configuration(source: Source) -> PeftConfig:
    try:
        config: PeftConfig = PeftConfig.from_pretrained(str(source.model_id), **source.hub)
    except (KeyError, TypeError, AttributeError, UnicodeDecodeError, json.JSONDecodeError) as error:
        # what PEFT meets in a broken one
        raise ValueError(
            f"expected an adapter's configuration in {source.model_id}, got an unreadable {CONFIG_NAME} "
            f"({type(error).__name__}: {error}); save the adapter again"
        ) from error
    return config


def _load(weights: Path) -> dict[str, Tensor]:
    # not mapped: a task that is served must not change, or end the process, when its file is written to
    try:
        return load(weights.read_bytes())
    except SafetensorError as error:
        raise ValueError(
            f"expected weights in {weights}, got unreadable ones ({error}); save the adapter again"
        ) from error


def _split(state: Mapping[str, Tensor]) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor]]:
    """Return the factors by block and name, and the other tensors by their names in the model."""
    factors: dict[str, dict[str, Tensor]] = {}
    rest: dict[str, Tensor] = {}
    for name, tensor in state.items():
        path = name.removeprefix(PREFIX)
        block, found, factor = path.partition(".aot_rows.")
        if found:
            factors.setdefault(block, {})[factor] = tensor
        else:
            rest[path] = tensor
    return factors, rest


def _names_here(saved: Collection[str], blocks: Collection[str]) -> dict[str, str]:
    """Return what blocks are called in this model: trained under a head, they have one more name in front, or less."""
    names = {}
    for name in saved:
        found = [block for block in blocks if block.endswith(f".{name}") or name.endswith(f".{block}")]
        names[name] = found[0] if name not in blocks and len(found) == 1 else name
    return names


def _stack(config: AoTConfig, layers: StackRows, factors: Mapping[str, Mapping[str, Tensor]]) -> StackedFactors:
    embedding = input_embedding(layers.stack)
    if embedding is None:
        raise RuntimeError(f"expected {type(layers.stack).__name__} to embed token ids, got no input embedding")
    sizes = embedding.embedding_dim, layers.width
    modules = [rows_from(config, *sizes, factors[block]) if block in factors else None for block in layers.blocks]
    device = embedding.weight.device
    return StackedFactors(modules, None if device.type == "meta" else device)


def model_heads(
    heads: Mapping[str, RoutedHead], source: Source, config: AoTConfig, tensors: Mapping[str, Tensor]
) -> dict[str, nn.Module]:
    """Make a task's own heads where the model has some, with the class of these.

    Args:
        heads: The heads of the model that a task may bring its own of, by name.
        source: Where the task is.
        config: Its configuration.
        tensors: What is saved beside its factors.

    Raises:
        ValueError: It has a head that the model has not.
    """
    own, left = {}, set(tensors)
    for name, wrapper in heads.items():
        state = {key.removeprefix(f"{name}."): t for key, t in tensors.items() if key.startswith(f"{name}.")}
        if not state:
            continue
        holder = nn.ModuleDict({"head": copy.deepcopy(wrapper.original_module)})
        fit_linears(holder, "head", "head", {f"head.{key}": tensor for key, tensor in state.items()})
        holder["head"].load_state_dict(state, assign=True)
        own[name] = holder["head"].eval().requires_grad_(False)
        left -= {f"{name}.{key}" for key in state}
    if left:
        raise ValueError(
            f"expected heads among {sorted(heads)}, which the model has, got {sorted(left)[0]} in {source.model_id}; "
            f"load the backbone with such a head, and an adapter with it in modules_to_save first"
        )
    return own

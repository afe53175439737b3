"""AoT P-Tuning as a PEFT tuner: chooses and wraps blocks, and looks after the life of adapters.

What one call computes stands in `layer` and `lookup`; files stand in `files`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from peft.config import PeftConfig
from peft.tuners.tuners_utils import _ExcludedModule
from peft.utils.error import NoMatchingPeftModuleError
from torch import nn

from peft_aot.backbone import Block, find_blocks, input_embedding, vocabulary_size
from peft_aot.tuner import TaskTuner, matches

from . import token_ids
from .combine import combined_config
from .config import AoTConfig
from .layer import CANNOT_MERGE, AoTLayer
from .lookup import Lookup
from .reparam import set_combination


class AoTModel(TaskTuner):
    """AoT P-Tuning (arXiv 2305.10835) on a backbone.

    Args:
        model: The backbone; its blocks are wrapped in place.
        config: One `AoTConfig`, or several by adapter name.
        adapter_name: The first adapter's name.

    Example:
        >>> model = get_peft_model(backbone, AoTConfig(task_type="SEQ_CLS", r=64))
    """

    method = "AoT P-Tuning"
    config_cls = AoTConfig
    prefix: str = "aot_"
    tuner_layer_cls = AoTLayer

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        super()._pre_injection_hook(model, config, adapter_name)
        self.lookup = Lookup(self)
        self.sources: dict[str, Any] = {}  # kept by `files`

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # generate clones `inputs_embeds`, whose ids we know here
        ids = token_ids.known_ids(kwargs.get("inputs_embeds"), self.model)
        stated = nullcontext() if ids is None else token_ids.token_ids(ids)
        with token_ids.contained(), super()._enable_peft_forward_hooks(*args, **kwargs), stated:
            yield

    # choosing and wrapping blocks

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        config = as_aot(peft_config)
        blocks = find_blocks(self.model)
        self._check_backbone(config, blocks)
        chosen = choose_blocks(config, blocks)
        config.vocab_size = max(vocabulary_size(block.stack) for block in blocks)
        config.token_dim = blocks[0].width
        config.num_layers = len(blocks)
        config.check_kron_shape()
        self._blocks = {block.name: block for block in chosen}
        return config

    def _check_backbone(self, config: AoTConfig, blocks: Sequence[Block]) -> None:
        found = {
            "vocab_size": max(vocabulary_size(block.stack) for block in blocks),
            "token_dim": blocks[0].width,
            "num_layers": len(blocks),
        }
        for name, value in found.items():
            expected = getattr(config, name)
            if expected is not None and expected != value:
                raise ValueError(
                    f"expected a backbone with {name}={expected}, got {name}={value} in "
                    f"{type(self.model).__name__}; load the backbone this adapter was trained on"
                    f"{f', {config.base_model_name_or_path}' if config.base_model_name_or_path else ''}"
                )

    def _check_target_module_exists(self, peft_config: PeftConfig, key: str) -> Any:  # type: ignore[override]
        # a method where PEFT has a static one: blocks are known from the model's structure, not from the config alone
        if key in self._blocks:
            return True
        return _ExcludedModule() if matches(as_aot(peft_config).exclude_modules, key) else False

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        block = self._blocks[current_key]
        embedding = input_embedding(block.stack)
        if embedding is None:
            raise RuntimeError(f"expected {type(block.stack).__name__} to embed token ids, got no input embedding")
        token_ids.watch(block.stack, self.model)
        self.lookup.vocab_sizes[adapter_name] = vocabulary_size(block.stack)
        if not isinstance(target, AoTLayer):
            layer = AoTLayer(target, current_key, self.lookup, adapter_name)
            self._replace_module(parent, target_name, layer, target)
            self.lookup.rows.append(layer.aot_rows)
            target = layer
        target.update_layer(adapter_name, as_aot(peft_config), embedding.embedding_dim, block.width)

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        # PEFT's version moves `weight` about, which a block does not have
        setattr(parent, child_name, new_module)

    # the life of adapters

    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "linear"
    ) -> None:
        """Add an adapter whose table is the weighted sum of other adapters' tables, exactly.

        Ranks add up, since hidden units stand side by side; the cost of fused inference stays the same. Heads
        (`modules_to_save`) are not combined: the new adapter gets a copy of the first adapter's.

        Args:
            adapters: Names of adapters of one reparametrization.
            weights: One factor per adapter.
            adapter_name: The new adapter's name.
            combination_type: Only `"linear"`.

        Raises:
            ValueError: Unknown names, differing lengths or reparametrizations, or another combination type.
        """
        configs = {name: as_aot(config) for name, config in self.peft_config.items()}
        config = combined_config(configs, adapters, weights, adapter_name, combination_type)
        self.peft_config[adapter_name] = config
        try:
            self.inject_adapter(self.model, adapter_name)
        except Exception:
            del self.peft_config[adapter_name]
            raise
        for layer in self.model.modules():
            if isinstance(layer, AoTLayer) and adapter_name in layer.aot_rows:
                set_combination(layer.rows_of(adapter_name), [layer.rows_of(name) for name in adapters], weights)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and forget its table."""
        super().delete_adapter(adapter_name)
        self.lookup.detach(adapter_name)
        self.sources.pop(adapter_name, None)

    def unload(self) -> nn.Module:
        """Return the backbone as it was before any adapter: its own heads, hooks removed."""
        model = super().unload()
        token_ids.unwatch(model)
        return model

    def _check_merge_allowed(self) -> None:
        raise ValueError(CANNOT_MERGE)


def as_aot(config: PeftConfig) -> AoTConfig:
    """Return `config`, of which PEFT only knows that it is a `PeftConfig`."""
    if not isinstance(config, AoTConfig):
        raise TypeError(f"expected an AoTConfig, got {type(config).__name__}; do not mix methods in one model")
    return config


def choose_blocks(config: AoTConfig, blocks: Sequence[Block]) -> list[Block]:
    """Return the blocks that a configuration asks for.

    Raises:
        NoMatchingPeftModuleError: `target_modules`, `layers_to_transform` and `exclude_modules` leave none.
    """
    numbers = config.layers_to_transform
    numbers = [numbers] if isinstance(numbers, int) else numbers
    patterns = [config.layers_pattern] if isinstance(config.layers_pattern, str) else config.layers_pattern
    chosen = [
        block
        for block in blocks
        if (config.target_modules is None or matches(config.target_modules, block.name))
        and (not numbers or block.index in numbers)
        and (not patterns or block.pattern in patterns)
        and not matches(config.exclude_modules, block.name)
    ]
    if not chosen:
        raise NoMatchingPeftModuleError(
            f"expected target_modules={config.target_modules!r}, layers_to_transform={numbers}, layers_pattern="
            f"{patterns} and exclude_modules={config.exclude_modules!r} to leave a transformer block, got none of "
            f"{blocks[0].name} ... {blocks[-1].name}; leave them out to take all blocks"
        )
    return chosen

"""AoT P-Tuning as a PEFT tuner: chooses and wraps blocks, and looks after the life of adapters.

What one call computes stands in `layer` and `lookup`; tables beside saved adapters stand in `files`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from peft.config import PeftConfig
from peft.tuners.tuners_utils import _ExcludedModule
from torch import Tensor, nn

from peft_aot.backbone import find_blocks, input_embedding, vocabulary_size
from peft_aot.fusion import FUSED, NOT_FUSED
from peft_aot.routing import RoutedHead, Tasks, check_batch, check_names
from peft_aot.source import Source
from peft_aot.tables import TABLE_FILE
from peft_aot.tuner import TaskTuner, matches

from . import describe, files, token_ids
from .choose import choose_blocks
from .combine import combined_config
from .config import CANNOT_FUSE_HIDDEN, DEFAULT_ALPHA, AoTConfig, as_aot
from .layer import CANNOT_MERGE, AoTLayer
from .lookup import Lookup
from .placement import CPU, choose_placement
from .prefetch import Prefetched, using
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
    paper = "https://arxiv.org/abs/2305.10835"
    tag = "aot-p-tuning"
    what = "before every transformer block it adds a learned vector to the hidden state of each token"
    values = "factors"
    fixed = (
        "r", "alpha", "reparam", "bottleneck_input", "kron_shape", "activation", "normalize_embeddings", "vocab_size",
        "token_dim", "num_layers",
    )  # fmt: skip
    extra_files = (TABLE_FILE,)
    save_options = frozenset({"fuse"})
    load_options = frozenset({"use_table", "table_placement", "memory_budget"})
    config_cls = AoTConfig
    prefix: str = "aot_"
    tuner_layer_cls = AoTLayer

    def _pre_injection_hook(self, model: nn.Module, config: PeftConfig, adapter_name: str) -> None:
        super()._pre_injection_hook(model, config, adapter_name)
        self.lookup = Lookup(self)
        if getattr(getattr(model, "config", None), "model_type", None) == "xlnet":  # a square batch looks as before
            self.cannot_mix = "XLNet turns its batch about, so that the row of an example cannot be told"

    def forward(self, *args: Any, prefetched: Prefetched | None = None, **kwargs: Any) -> Any:
        """Run the backbone, on rows that were fetched before if a handle of `prefetch` is given."""
        with using(prefetched):
            return super().forward(*args, **kwargs)

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        # generate clones `inputs_embeds`, whose ids we know here
        ids = token_ids.known_ids(kwargs.get("inputs_embeds"), self.model)
        stated = nullcontext() if ids is None else token_ids.token_ids(ids)
        with token_ids.contained(), super()._enable_peft_forward_hooks(*args, **kwargs), stated:
            yield

    def _banked_for(self, kwargs: Mapping[str, Any]) -> Mapping[str, Any]:
        handle: Prefetched | None = kwargs.get("prefetched")
        if handle is None:
            return self.banked
        handle.check_names(kwargs.get("adapter_names"))
        return handle.asked.banked

    def _route_heads(self) -> list[RoutedHead]:
        heads = super()._route_heads()
        for stack in self.lookup.stacks:  # again: its embedding may be among the heads now
            token_ids.watch(stack.stack, self.model)
        return heads

    def prefetch(self, input_ids: Tensor, adapter_names: Sequence[str] | None = None) -> Prefetched:
        """Fetch the rows of a batch before it runs, beside what is running: from files, into staging, to the device.

        Args:
            input_ids: (B, T), what the batch will pass. For an encoder and decoder, what the encoder gets.
            adapter_names: What the batch will pass, if it is a mixed one.

        Returns:
            A handle for one forward: `model(input_ids=..., adapter_names=..., prefetched=handle)`. The batch runs with
            the tasks of the model's bank that are there now.

        Raises:
            ValueError: No token ids (B, T); unknown names, or not one per example.

        Example:
            >>> handle = model.prefetch(batch["input_ids"], names)
            >>> model(**batch, adapter_names=names, prefetched=handle)
        """
        token_ids.check_ids(input_ids)
        tasks = None
        if adapter_names is not None:
            tasks = Tasks(self, check_names(adapter_names, self.peft_config, self.banked), banked=self.banked)
            check_batch(tasks, (input_ids,), {})
        with torch.no_grad():
            return self.lookup.prefetch(tasks, input_ids, tuple(self.active_adapters))

    # choosing and wrapping blocks

    def _prepare_adapter_config(self, peft_config: PeftConfig, model_config: dict[str, Any]) -> PeftConfig:
        config = as_aot(peft_config)
        blocks = find_blocks(self.model)
        sizes = {
            "vocab_size": max(vocabulary_size(block.stack) for block in blocks),
            "token_dim": blocks[0].width,
            "num_layers": len(blocks),
        }
        config.check_backbone(sizes, type(self.model).__name__)
        chosen = choose_blocks(config, blocks)
        config.check_alpha()
        config.alpha = config.alpha or DEFAULT_ALPHA
        for name, value in sizes.items():
            setattr(config, name, value)
        config.check_kron_shape()
        self._blocks, self._vocab_size = {block.name: block for block in chosen}, sizes["vocab_size"]
        return config

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
        self.lookup.vocab_sizes[adapter_name] = self._vocab_size
        if not isinstance(target, AoTLayer):
            token_ids.watch(block.stack, self.model)
            layer = AoTLayer(target, current_key, self.lookup, adapter_name)
            self._replace_module(parent, target_name, layer, target)
            self.lookup.add_layer(block.stack, current_key, layer.aot_rows, block.width)
            target = layer
        target.update_layer(adapter_name, as_aot(peft_config), embedding.embedding_dim, block.width)

    # the life of adapters

    def set_table_placement(
        self, table_placement: str | None = None, memory_budget: int | Literal["auto", "keep"] | None = "keep"
    ) -> None:
        """Choose where the rows of this model's tasks are kept; the numbers are the same but for rounding.

        What is not passed stays as it is.

        Args:
            table_placement: "ram" and "device" copy whole tables, in the format of the hidden states, into the
                machine's memory or the accelerator's when a batch first asks for them; "mmap" reads them from their
                files, "staged" likewise, with a copy to the accelerator beside the computation; "factors" leaves
                tables alone; "auto" is "device" on an accelerator and "mmap" on the CPU. Tasks without a table, or
                whose table finds no room, are served all the same.
            memory_budget: Bytes for all tasks together: for tables in memory or, with "mmap" and "factors" on the CPU,
                for rows that were computed from factors, of which those not used lately are given up (CLOCK). "auto"
                is a quarter of the memory that is free now. None, as at first: no computed rows, "auto" for tables.

        Raises:
            ValueError: An unknown placement, "ram" on an accelerator, or a budget that one token's rows exceed.
        """
        embedding = input_embedding(self.lookup.stacks[0].stack)
        device = CPU if embedding is None or embedding.weight.device.type == "meta" else embedding.weight.device
        lookup = self.lookup
        lookup.place(choose_placement(table_placement, memory_budget, lookup.page_bytes, device, lookup.placement))

    def add_weighted_adapter(
        self, adapters: list[str], weights: list[float], adapter_name: str, combination_type: str = "linear"
    ) -> None:
        """Add an adapter that adds the weighted sum of what other adapters add, exactly: for tables, their sum.

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
        self._add_beside(config, adapter_name, adapters[0])
        for layer in self.model.modules():
            if isinstance(layer, AoTLayer) and adapter_name in layer.aot_rows:
                set_combination(layer.aot_rows[adapter_name], [layer.aot_rows[name] for name in adapters], weights)

    def delete_adapter(self, adapter_name: str) -> None:
        """Delete an adapter and forget its table."""
        super().delete_adapter(adapter_name)
        self.lookup.detach(adapter_name)

    def unload(self) -> nn.Module:
        """Return the backbone as it was before any adapter: its own heads, hooks removed."""
        model = super().unload()
        token_ids.unwatch(model)
        return model

    def _check_merge_allowed(self) -> None:
        raise ValueError(CANNOT_MERGE)

    # files, in words and beside the factors

    @classmethod
    def settings(cls, config: PeftConfig) -> dict[str, str]:
        """Return what is worth telling of a configuration, by name."""
        return describe.settings(as_aot(config))

    @classmethod
    def summary(cls, config: PeftConfig) -> str:
        """Return the same in a few words, for model cards."""
        return describe.summary(as_aot(config))

    def check_saving(self, adapter_names: Sequence[str], safe_serialization: bool, options: Mapping[str, Any]) -> None:
        """Refuse to save a table of an adapter that is no lookup, or beside factors not saved as safetensors.

        Raises:
            ValueError: That is wanted of an adapter.
        """
        for name in adapter_names:
            if self._wants_table(name, options) and self._config(name).bottleneck_input == "hidden":
                raise ValueError(f"{CANNOT_FUSE_HIDDEN}, for adapter '{name}'; leave fuse=True out, or that adapter")
        if not safe_serialization and any(self._wants_table(name, options) for name in adapter_names):
            raise ValueError(
                "expected safe_serialization=True for an adapter saved with its table, got False; leave it out, or "
                "pass fuse=False"
            )

    def complete_saved(self, adapter_name: str, folder: Path, options: Mapping[str, Any]) -> str:
        """Write the table, if the option `fuse` or, by default, the adapter's `fuse_on_save` asks for it."""
        config = self._config(adapter_name)
        if config.bottleneck_input == "hidden":
            return "It depends on more than the token id, so that no lookup table can hold it."
        if self._wants_table(adapter_name, options) and files.save_table(folder, self.model):
            return FUSED.format(dtype=config.table_dtype)
        return NOT_FUSED

    def adapter_loaded(self, adapter_name: str, source: Source, options: Mapping[str, Any]) -> None:
        """Use the table that was saved with an adapter, unless the option `use_table` is False."""
        if placing := {name: options[name] for name in ("table_placement", "memory_budget") if name in options}:
            self.set_table_placement(**placing)
        table, config, stacks = None, self._config(adapter_name), self.lookup.stacks
        if options.get("use_table", True):
            table = files.find_table(source, config, stacks, lambda layers: layers.factors_of(adapter_name))
        self.lookup.detach(adapter_name)
        if table is not None:
            self.lookup.attach(adapter_name, table)

    def made_from(self, adapter_name: str) -> Callable[[], None]:
        """Note what was made from an adapter's present values: also its table, if it is fresh."""
        restored, table = super().made_from(adapter_name), self.lookup.fresh_table(adapter_name)

        def also_the_table() -> None:
            restored()
            if table is not None:
                self.lookup.attach(adapter_name, table)

        return also_the_table

    def _wants_table(self, adapter_name: str, options: Mapping[str, Any]) -> bool:
        fuse: bool | None = options.get("fuse")
        return self._config(adapter_name).fuse_on_save if fuse is None else fuse

    def _config(self, adapter_name: str) -> AoTConfig:
        return as_aot(self.peft_config[adapter_name])

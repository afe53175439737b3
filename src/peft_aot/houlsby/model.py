"""Houlsby adapters as a PEFT tuner: after which projections they go."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import nn

from peft_aot.attached.config import AttachedConfig
from peft_aot.attached.model import AttachedTuner
from peft_aot.attached.targets import own_modules
from peft_aot.backbone import find_blocks
from peft_aot.sublayers import Sublayers, is_linear, sublayers

from .config import HoulsbyConfig, as_houlsby
from .layer import HoulsbyLayer


class HoulsbyModel(AttachedTuner):
    """Houlsby adapters (Houlsby et al. 2019, arXiv 1902.00751) on a backbone.

    Args:
        model: The backbone; each adapted projection gets a layer beside it.
        config: One `HoulsbyConfig`, or several by adapter name.
        adapter_name: The first adapter's name.

    Example:
        >>> model = get_peft_model(backbone, HoulsbyConfig(task_type="SEQ_CLS", r=64))
    """

    method = "Houlsby"
    paper = "https://arxiv.org/abs/1902.00751"
    tag = "houlsby-adapter"
    what = "it puts a trained bottleneck after the sub-layers of the transformer blocks (Houlsby et al. 2019)"
    shown = ("r", "activation", "placement", "layers_to_transform", *AttachedTuner.shown)
    fixed = ("r", "activation", "placement", "layers_to_transform", *AttachedTuner.fixed)
    config_cls = HoulsbyConfig
    prefix: str = "houlsby_layer.houlsby_"
    tuner_layer_cls = HoulsbyLayer

    def candidates(self, config: AttachedConfig) -> Mapping[str, str | None]:
        """Return every linear layer; one that its owner never calls would never run an adapter either."""
        return {name: _why_not_called(self.model, name) for name, m in own_modules(self.model) if is_linear(m)}

    def defaults(self, config: AttachedConfig, able: list[str]) -> list[str]:
        """Return the projections that end the sub-layers of the chosen blocks.

        Raises:
            ValueError: No such block, or one with a sub-layer whose last projection cannot be told.
        """
        houlsby = as_houlsby(config)
        blocks, there = self._chosen_blocks(houlsby.layers_to_transform), set(able)
        found = {
            "attention": {block: [n for n in parts.attention if n in there] for block, parts in blocks.items()},
            "ffn": {block: [parts.ffn_out] if parts.ffn_out else [] for block, parts in blocks.items()},
        }
        wanted = {kind: found[kind] for kind in found if houlsby.placement in ("both", kind)}
        if not all(names for of_block in wanted.values() for names in of_block.values()):
            complete = [kind for kind, of_block in wanted.items() if all(of_block.values())]
            raise ValueError(
                f"expected the last projections of all sub-layers of {type(self.model).__name__}, got those of "
                f"{' and of '.join(_told(kind, of_block) for kind, of_block in wanted.items())}; name the linear "
                f"layers to adapt in target_modules{f', or choose placement={complete[0]!r}' if complete else ''}"
            )
        return [name for of_block in wanted.values() for names in of_block.values() for name in names]

    def _chosen_blocks(self, given: Collection[int] | int | None) -> dict[str, Sublayers]:
        blocks = find_blocks(self.model)
        numbers = {block.index for block in blocks}
        wanted = numbers if given is None else {given} if isinstance(given, int) else set(given)
        if wanted - numbers:
            raise ValueError(
                f"expected layers_to_transform among the blocks 0 to {max(numbers)} of {type(self.model).__name__}, "
                f"got {sorted(wanted - numbers)}; leave them out"
            )
        parts = zip(blocks, sublayers(self.model), strict=True)
        return {block.name: part for block, part in parts if block.index in wanted}


def _why_not_called(model: nn.Module, name: str) -> str | None:
    path, _, leaf = name.rpartition(".")
    parent = model.get_submodule(path)
    if leaf != "in_proj" and {"A_log", "D"} <= parent._parameters.keys():  # Mamba
        return "whose weight fused kernels of state-space layers use without calling it"
    return None


def _told(kind: str, found: Mapping[str, list[str]]) -> str:
    """Say in how many blocks projections were found, and name one that was and a block where none was."""
    there = [names[0] for names in found.values() if names]
    without = [block for block, names in found.items() if not names]
    examples = [f"such as {name}" for name in there[:1]] + [f"none in {block}" for block in without[:1]]
    return f"{kind} in {len(there)} of {len(found)} blocks ({', '.join(examples)})"

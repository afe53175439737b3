"""The sub-layers of a transformer block: the projections that end its attentions, those of its feed-forward network.

Found by structure, because every architecture names them differently. Relied on: a class of attention is called one, a
projection is registered after those whose result it takes, and a feed-forward network is at least as wide as the hidden
states. Where that leaves a doubt, nothing is found. Adapters that stand in a block already are not seen.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from torch import nn
from transformers.pytorch_utils import Conv1D

from peft_aot.backbone import find_blocks
from peft_aot.tuner import TaskLayer


@dataclass(frozen=True)
class Sublayers:
    """The projections of one block, as dotted names below the model.

    Attributes:
        attention: For each attention (a decoder's block may have two), its projection back to D.
        ffn_in: Projections D -> I of the feed-forward network: one; or two, gate and up; or one D -> 2I that is both.
        ffn_out: Its projection I -> D. None, and `ffn_in` empty, for a block without one, or with experts.
    """

    attention: tuple[str, ...]
    ffn_in: tuple[str, ...]
    ffn_out: str | None


def sublayers(model: nn.Module) -> list[Sublayers]:
    """Find the sub-layers of every block of `model`, in the order of `find_blocks`.

    Raises:
        ValueError: As `find_blocks`: no blocks, no input embedding, or shared blocks.
    """
    found = []
    for block in find_blocks(model):
        module, prefix = model.get_submodule(block.name), f"{block.name}."
        attention = tuple(prefix + name for name in _attention_outputs(module, block.width))
        ffn_in, ffn_out = _feed_forward(module, block.width)
        found.append(Sublayers(attention, tuple(prefix + name for name in ffn_in), ffn_out and prefix + ffn_out))
    return found


def is_linear(module: nn.Module) -> bool:
    """Whether a module is a linear layer: PyTorch's, or GPT-2's, which stores its weight transposed."""
    return isinstance(module, (nn.Linear, Conv1D))


def linear_features(module: nn.Module) -> tuple[int, int]:
    """Return the sizes (in, out) of a linear layer.

    Raises:
        TypeError: Any other module.
    """
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return int(module.nx), int(module.nf)
    raise TypeError(
        f"expected a linear layer (nn.Linear, or Conv1D of transformers), got {type(module).__name__}; "
        f"choose target_modules that are linear layers"
    )


def _attention_outputs(block: nn.Module, width: int) -> list[str]:
    found = []
    for above, attention in _outermost(block, _is_attention):
        if isinstance(attention, nn.MultiheadAttention):
            continue  # PyTorch's reads the weight of its output projection and never calls it: a hook would not run
        names = [name for name, linear in _outermost(attention, is_linear) if linear_features(linear)[1] == width]
        # Some register a gate or the queries last, of the same shape as the output projection; those call it one
        # (o_proj, out_proj). The others name it anyhow (dense, c_proj), and it is the last.
        outputs = [
            name for name in names if "gate" not in name and any(part.startswith("o") for part in name.split("."))
        ]
        found += [f"{above}.{name}" for name in (outputs or names)[-1:]]
    return found


def _feed_forward(block: nn.Module, width: int) -> tuple[list[str], str | None]:
    parts = list(_outermost(block, lambda module: is_linear(module) or _mixes_tokens(module)))
    known = {id(parameter) for _, part in parts for parameter in part.parameters()}
    own = (parameter for module in _own(block) for parameter in module.parameters(recurse=False))
    if any(parameter.dim() > 1 and id(parameter) not in known for parameter in own):
        return [], None  # matrices that are no linear layers: stacked experts, or their router
    sizes = {name: linear_features(part) for name, part in parts if is_linear(part)}
    inner = max((i for i, o in sizes.values() if o == width), default=0)
    outputs = [name for name, size in sizes.items() if size == (inner, width)]
    if inner == width:
        outputs = outputs[-1:]  # inputs have the same shape
    if inner < width or len(outputs) != 1:
        return [], None  # a bottleneck, or experts
    inputs = [name for name, (i, o) in sizes.items() if i == width and o in (inner, 2 * inner) and name not in outputs]
    if sum(sizes[name][1] for name in inputs) not in (inner, 2 * inner):
        return [], None
    return inputs, outputs[0]


def _outermost(
    module: nn.Module, wanted: Callable[[nn.Module], bool], prefix: str = ""
) -> Iterator[tuple[str, nn.Module]]:
    """Yield names and modules below `module` that are wanted, and nothing below those."""
    for name, child in module.named_children():
        if isinstance(child, TaskLayer):
            continue
        if wanted(child):
            yield prefix + name, child
        else:
            yield from _outermost(child, wanted, f"{prefix}{name}.")


def _own(module: nn.Module) -> Iterator[nn.Module]:
    yield module
    for child in module.children():
        if not isinstance(child, TaskLayer):
            yield from _own(child)


def _is_attention(module: nn.Module) -> bool:
    return "Attention" in type(module).__name__


def _mixes_tokens(module: nn.Module) -> bool:
    """Whether it is an attention, or a state-space layer: those have a convolution over tokens."""
    return _is_attention(module) or any(isinstance(child, nn.Conv1d) for child in module.children())

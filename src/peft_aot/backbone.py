"""What a transformer is to this package: its blocks, the stack that owns them, its input embedding, its sizes.

Blocks are found by structure, not by names in a config, because every architecture names its layers differently. Knows
nothing of adapters.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from peft.utils.other import AuxiliaryTrainingWrapper, ModulesToSaveWrapper
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer


@dataclass(frozen=True)
class Block:
    """A transformer block and what surrounds it.

    Attributes:
        name: Dotted path below the model, e.g. `bert.encoder.layer.0`.
        index: Its number in its list of blocks.
        pattern: Name of that list, e.g. `layer`.
        stack: The module whose call runs the block and embeds the token ids.
        width: D, the size of its hidden states.
    """

    name: str
    index: int
    pattern: str
    stack: nn.Module
    width: int


def input_embedding(stack: nn.Module) -> nn.Embedding | None:
    """Return the frozen input embedding of a stack, or None if it embeds no token ids."""
    embedding: nn.Module | None
    if isinstance(stack, PreTrainedModel):
        try:
            embedding = stack.get_input_embeddings()
        except (NotImplementedError, AttributeError):  # transformers' way to say that there is none
            return None
    else:
        embeddings = [m for m in stack.modules() if isinstance(m, nn.Embedding)]
        embedding = max(embeddings, key=lambda m: m.num_embeddings, default=None)  # positions and types are fewer
    while isinstance(embedding, AuxiliaryTrainingWrapper):  # a trained copy; the frozen one is below
        embedding = embedding.original_module
    return embedding if isinstance(embedding, nn.Embedding) else None


def embedders(stack: nn.Module) -> list[nn.Module]:
    """Return all that may embed a stack's ids: its input embedding, trained copies of it, what chooses among them."""
    embedding = input_embedding(stack)
    if embedding is None:
        return []
    choosing = [m for m in stack.modules() if isinstance(m, ModulesToSaveWrapper) and m.original_module is embedding]
    return [embedding, *(copy for wrapper in choosing for copy in wrapper.modules_to_save.values()), *choosing]


def find_blocks(model: nn.Module) -> list[Block]:
    """Find the transformer blocks of every stack of `model` that embeds token ids, in execution order.

    A list of blocks is an outermost `nn.ModuleList` below a stack: those of `GradientCheckpointingLayer`s, which most
    blocks of transformers are, or else the longest.

    Raises:
        ValueError: No blocks, no input embedding, or one block that runs several times (ALBERT).
    """
    modules = dict(model.named_modules())
    found = []
    for stack_name, lists in _lists_by_stack(modules).items():
        stack = modules[stack_name]
        embedding = input_embedding(stack)
        if embedding is None:
            continue
        for list_name, blocks in lists.items():
            _refuse_shared_blocks(stack, blocks)
            width = _width(stack, embedding)
            pattern = list_name.rpartition(".")[2]
            found += [Block(f"{list_name}.{i}", i, pattern, stack, width) for i in range(len(blocks))]
    if not found:
        raise ValueError(
            f"expected a model with transformer blocks (an nn.ModuleList) below an input embedding of token ids, "
            f"got {type(model).__name__} without; pass a text model, or a backbone whose blocks stand in a ModuleList"
        )
    return found


def vocabulary_size(stack: nn.Module) -> int:
    """Return V, the number of rows of the stack's input embedding."""
    embedding = input_embedding(stack)
    if embedding is None:
        raise ValueError(f"expected a stack that embeds token ids, got {type(stack).__name__}; pass a text model")
    return embedding.num_embeddings


def embed(embedding: nn.Embedding, token_ids: Tensor) -> Tensor:
    """Look tokens up in an embedding, wherever its weight is, without running its hooks.

    Returns:
        (U, E), float32, on the CPU.
    """
    # an offloaded embedding is on the "meta" device; accelerate's `forward` brings its weight and moves the ids
    device = embedding.weight.device
    with torch.no_grad():
        found: Tensor = embedding.forward(token_ids if device.type == "meta" else token_ids.to(device))
    return found.float().cpu()


def _core(block: nn.Module) -> nn.Module:
    """See through the wrapper of an adapter that is there already."""
    inner = block._modules.get("base_layer")
    return block if inner is None else _core(inner)


def _outermost_lists(modules: dict[str, nn.Module]) -> dict[str, nn.ModuleList]:
    lists: dict[str, nn.ModuleList] = {}
    for name, module in modules.items():
        inside_another = any(name.startswith(f"{outer}.") for outer in lists)
        nested = isinstance(module, nn.ModuleList) and len(module) > 0 and isinstance(module[0], nn.ModuleList)
        if isinstance(module, nn.ModuleList) and len(module) > 0 and not inside_another and not nested:
            lists[name] = module
    return lists


def _lists_by_stack(modules: dict[str, nn.Module]) -> dict[str, dict[str, nn.ModuleList]]:
    """Group the lists of blocks by the name of their stack, leaving out lists that hold no blocks."""
    lists_of: dict[str, dict[str, nn.ModuleList]] = {}
    for name, blocks in _outermost_lists(modules).items():
        lists_of.setdefault(_nearest_stack(name, modules), {})[name] = blocks
    owners = {name for name in lists_of if not _embeds_through_another(name, modules)}
    lists_of = {name: lists for name, lists in lists_of.items() if name in owners}
    proper = {
        stack: {
            name: blocks for name, blocks in lists.items() if isinstance(_core(blocks[0]), GradientCheckpointingLayer)
        }
        for stack, lists in lists_of.items()
    }
    if any(proper.values()):
        return proper
    return {stack: _longest(lists) for stack, lists in lists_of.items()}


def _embeds_through_another(name: str, modules: dict[str, nn.Module]) -> bool:
    """Whether a stack's input embedding is that of a model inside it, so that its own lists are no blocks (heads)."""
    embedding = input_embedding(modules[name])
    prefix = f"{name}." if name else ""
    inner = (m for n, m in modules.items() if n != name and n.startswith(prefix) and isinstance(m, PreTrainedModel))
    return embedding is not None and any(input_embedding(m) is embedding for m in inner)


def _longest(lists: dict[str, nn.ModuleList]) -> dict[str, nn.ModuleList]:
    length = max(len(blocks) for blocks in lists.values())
    longest = {name: blocks for name, blocks in lists.items() if len(blocks) == length}
    if len(longest) > 1:
        raise ValueError(
            f"expected one list of transformer blocks, got {sorted(longest)} of equal length; choose a backbone whose "
            f"blocks stand in one ModuleList, such as BERT, RoBERTa or Llama"
        )
    return longest


def _nearest_stack(name: str, modules: dict[str, nn.Module]) -> str:
    path = name
    while path:
        path = path.rpartition(".")[0]
        if isinstance(modules[path], PreTrainedModel):
            return path
    return ""


def _width(stack: nn.Module, embedding: nn.Embedding) -> int:
    if isinstance(stack, PreTrainedModel):
        return int(stack.config.get_text_config().hidden_size)
    return embedding.embedding_dim


def _refuse_shared_blocks(stack: nn.Module, blocks: nn.ModuleList) -> None:
    if not isinstance(stack, PreTrainedModel):
        return
    runs = getattr(stack.config, "num_hidden_layers", len(blocks))
    groups = getattr(stack.config, "num_hidden_groups", None)
    if groups is not None and runs != len(blocks):
        raise ValueError(
            f"expected one block per layer, got {type(stack).__name__}, which runs {len(blocks)} shared block(s) "
            f"{runs} times; choose a backbone without shared blocks (BERT, RoBERTa, DeBERTa, ...)"
        )

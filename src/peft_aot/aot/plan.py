"""Which rows a call needs, and where they go: resolved once per stack call and shared by its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor, nn

from peft_aot.backbone import input_embedding
from peft_aot.ops import Placement, place_distinct, place_every
from peft_aot.routing import BASE, NO_TASKS, Tasks, tasks_of

from .banked import BankedTask
from .token_ids import StackCall


@dataclass(frozen=True)
class Asked:
    """What a call asks for.

    Attributes:
        ids: (B, T) int64.
        groups: For each group of examples the tasks whose rows add up.
        group_of: For each example its group, or -1 for none.
        banked: The tasks of the model's bank, by name; other tasks are adapters.
        embedding: What the stack embeds its ids with.
    """

    ids: Tensor
    groups: tuple[tuple[str, ...], ...]
    group_of: list[int]
    banked: Mapping[str, BankedTask]
    embedding: nn.Embedding


@dataclass(frozen=True)
class Plan:
    """Which rows a call needs.

    Attributes:
        asked: What it asks for.
        placement: Which rows, and where they go.
    """

    asked: Asked
    placement: Placement

    def embeddings(self, group: int) -> Tensor:
        """Return the backbone's embeddings (U_g, E) of a group's tokens."""
        return self.embed(self.placement.tokens[group])

    def embed(self, tokens: Tensor) -> Tensor:
        """Return the backbone's embeddings (U, E) of tokens (U,)."""
        # `forward`, not a call: hooks on the embedding would take this look-up for the model's own
        return self.asked.embedding.forward(tokens.to(self.asked.ids.device)).detach()


def ask(call: StackCall, hidden: Tensor, active: tuple[str, ...], tuner: BaseTuner) -> Asked:
    """Find what a call asks for.

    Args:
        call: The stack call.
        hidden: (B, T, D), what its first wrapped block is given.
        active: The adapters whose rows to add, unless the call is a mixed batch.
        tuner: The tuner whose model is running.

    Raises:
        ValueError: No token ids are known, or they do not fit the hidden states.
        IndexError: Ids that were stated are outside the vocabulary.
    """
    ids = _checked_ids(call, hidden)
    tasks = tasks_of(tuner)
    if tasks is not None and call.examples not in (None, ids.shape[0]):
        raise ValueError(
            f"expected a stack that embeds {call.examples} examples as {call.examples} rows, got {ids.shape[0]} in "
            f"{type(call.stack).__name__}, which reorders its input; run its adapters one at a time"
        )
    asked = group_examples(ids, tasks, active, call.stack)
    if call.stated and ids.numel() and not torch.compiler.is_compiling():
        _refuse_range(int(ids.min()), int(ids.max()), asked.embedding.num_embeddings)
    return asked


def group_examples(ids: Tensor, tasks: Tasks | None, active: tuple[str, ...], stack: nn.Module) -> Asked:
    """Put the examples of a batch into groups: those of one task, or all if it is no mixed batch."""
    embedding = input_embedding(stack)
    if embedding is None:
        raise RuntimeError(f"expected {type(stack).__name__} to embed token ids, got no input embedding")
    if tasks is None:
        return Asked(ids, (active,), [0] * ids.shape[0], NO_TASKS, embedding)
    names = tasks.expand(ids.shape[0])
    order = {name: g for g, name in enumerate(dict.fromkeys(n for n in names if n != BASE))}
    groups = tuple((name,) for name in order)
    return Asked(ids, groups, [order.get(name, -1) for name in names], tasks.banked, embedding)


def make_plan(asked: Asked, vocab_sizes: Mapping[str, int]) -> Plan:
    """Find which rows a call needs.

    Args:
        asked: What it asks for.
        vocab_sizes: V by name of an adapter.

    Raises:
        IndexError: A token id outside the vocabulary.
    """
    place = place_every if torch.compiler.is_compiling() else place_distinct
    placement = place(asked.ids, asked.group_of, len(asked.groups))
    if not torch.compiler.is_compiling():
        _check_range(placement, min(asked.embedding.num_embeddings, smallest_vocabulary(asked, vocab_sizes)))
    return Plan(asked, placement)


def check_ids(asked: Asked, vocab_sizes: Mapping[str, int]) -> None:
    """Refuse token ids that a task's table has no row for; the backbone has refused those that it does not know."""
    smallest = smallest_vocabulary(asked, vocab_sizes)
    if smallest < asked.embedding.num_embeddings and asked.ids.numel():
        _refuse_range(int(asked.ids.min()), int(asked.ids.max()), smallest)


def smallest_vocabulary(asked: Asked, vocab_sizes: Mapping[str, int]) -> int:
    """Return the smallest V of the tasks that are asked for, or of the backbone if none is."""
    names = [name for group in asked.groups for name in group]
    sizes = [vocab_sizes[n] if n in vocab_sizes else asked.banked[n].vocab_size for n in names]
    return min(sizes, default=asked.embedding.num_embeddings)


def _checked_ids(call: StackCall, hidden: Tensor) -> Tensor:
    ids = call.token_ids
    if ids is None:
        raise ValueError(
            "expected token ids, got inputs_embeds that the model's own embedding layer did not just produce; "
            "pass input_ids, or state the ids with `with peft_aot.token_ids(ids):`"
        )
    if ids.shape != hidden.shape[:-1]:
        raise ValueError(
            f"expected hidden states of shape {(*ids.shape, hidden.shape[-1])} for token ids of shape "
            f"{tuple(ids.shape)}, got {tuple(hidden.shape)}; use an attention implementation that does not unpad "
            f"or reorder the batch, such as attn_implementation='sdpa', or another architecture"
        )
    return ids


def _check_range(placement: Placement, vocab_size: int) -> None:
    for tokens in placement.tokens:
        if tokens.numel():
            _refuse_range(int(tokens[0]), int(tokens[-1]), vocab_size)  # distinct tokens ascend


def _refuse_range(low: int, high: int, vocab_size: int) -> None:
    if low < 0 or high >= vocab_size:
        raise IndexError(
            f"expected token ids in [0, {vocab_size}), the vocabulary of the table, got ids from {low} to {high}; use "
            f"the tokenizer of the backbone the adapter was trained with, or resize the embeddings before "
            f"get_peft_model"
        )

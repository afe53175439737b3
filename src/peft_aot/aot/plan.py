"""Which rows a call needs, and where they go: resolved once per stack call and shared by its layers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from peft.tuners.tuners_utils import BaseTuner
from torch import Tensor

from peft_aot.backbone import input_embedding
from peft_aot.ops import Placement, place_distinct, place_every
from peft_aot.routing import BASE, tasks_of

from .banked import BankedTask
from .token_ids import StackCall


@dataclass(frozen=True)
class Plan:
    """What a call needs.

    Attributes:
        groups: For each group of examples the adapters whose rows add up.
        placement: Which rows, and where they go.
        embeddings: For each group (U_g, E), the backbone's own.
        banked: The tasks of the call's bank, by name.
    """

    groups: tuple[tuple[str, ...], ...]
    placement: Placement
    embeddings: tuple[Tensor, ...]
    banked: Mapping[str, BankedTask]


def make_plan(
    call: StackCall, hidden: Tensor, active: tuple[str, ...], tuner: BaseTuner, vocab_sizes: Mapping[str, int]
) -> Plan:
    """Find which rows a call needs.

    Args:
        call: The stack call.
        hidden: (B, T, D), what its first wrapped block is given.
        active: The adapters whose rows to add, unless the call is a mixed batch.
        tuner: The tuner whose model is running.
        vocab_sizes: V by adapter name.

    Raises:
        ValueError: No token ids are known, or they do not fit the hidden states.
        IndexError: A token id outside the vocabulary.
    """
    ids = _checked_ids(call, hidden)
    tasks = tasks_of(tuner)
    if tasks is not None and call.examples not in (None, ids.shape[0]):
        raise ValueError(
            f"expected a stack that embeds {call.examples} examples as {call.examples} rows, got {ids.shape[0]} in "
            f"{type(call.stack).__name__}, which reorders its input; run its adapters one at a time"
        )
    banked: Mapping[str, BankedTask] = {} if tasks is None else tasks.banked
    if tasks is None:
        groups: tuple[tuple[str, ...], ...] = (active,)
        group_of = [0] * ids.shape[0]
    else:
        names = tasks.expand(ids.shape[0])
        order = {name: g for g, name in enumerate(dict.fromkeys(n for n in names if n != BASE))}
        groups = tuple((name,) for name in order)
        group_of = [order.get(name, -1) for name in names]
    place = place_every if torch.compiler.is_compiling() else place_distinct
    placement = place(ids, group_of, len(groups))
    embedding = input_embedding(call.stack)
    if embedding is None:
        raise RuntimeError(f"expected {type(call.stack).__name__} to embed token ids, got no input embedding")
    if not torch.compiler.is_compiling():
        own = vocab_sizes
        sizes = [own[n] if n in own else banked[n].vocab_size for group in groups for n in group]
        _check_range(placement, min([embedding.num_embeddings, *sizes]))
    # `forward`, not a call: hooks on the embedding would take this look-up for the model's own
    embeddings = tuple(embedding.forward(tokens.to(ids.device)).detach() for tokens in placement.tokens)
    return Plan(groups, placement, embeddings, banked)


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
        if tokens.numel() and (int(tokens[0]) < 0 or int(tokens[-1]) >= vocab_size):  # distinct tokens ascend
            raise IndexError(
                f"expected token ids in [0, {vocab_size}), the vocabulary of the table, got ids from {int(tokens[0])} "
                f"to {int(tokens[-1])}; use the tokenizer of the backbone the adapter was trained with, or resize the "
                f"embeddings before get_peft_model"
            )

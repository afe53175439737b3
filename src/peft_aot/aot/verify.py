"""Whether a table fits what is there: its factors and the backbone.

A hash ties a table to its factors; rows computed anew for a few tokens tie it to the backbone's embeddings too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from peft_aot.backbone import embed, input_embedding
from peft_aot.tables import Table

from .config import AoTConfig
from .stack_rows import StackRows
from .stacked import StackedFactors

SAMPLED_TOKENS = 64
# Of the largest row: what storing in a dtype may change, with room; another backbone's rows differ by about their size.
TOLERANCE = {"float32": 1e-3, "float16": 5e-3, "bfloat16": 2e-2, "int8": 2e-2}
HALF_PRECISION = 5e-2


def check_table(
    table: Table, config: AoTConfig, stacks: Sequence[StackRows], factors_for: Callable[[StackRows], StackedFactors]
) -> None:
    """Refuse a table whose rows are not those of the adapter on this backbone.

    Args:
        table: The table.
        config: The adapter's configuration.
        stacks: The stacks of the backbone.
        factors_for: Gives the adapter's factors in one of them.

    Raises:
        ValueError: Other sizes, or rows that differ on sampled tokens.
    """
    header = table.header
    if (header.vocab_size, header.hidden_size) != (config.vocab_size, config.token_dim):
        raise ValueError(
            f"expected a table for vocabulary {config.vocab_size} and width {config.token_dim}, got {table.path} for "
            f"{header.vocab_size} and {header.hidden_size}; make it again with `peft-aot fuse`"
        )
    every = torch.arange(header.vocab_size)
    missing = table.missing(every)
    kept = every if missing is None else every[~missing]
    tokens = kept[torch.linspace(0, len(kept) - 1, min(SAMPLED_TOKENS, len(kept))).long()]
    stored = table.rows(tokens).float()
    for layers in stacks:
        factors, embedding = factors_for(layers), input_embedding(layers.stack)
        if embedding is None:
            continue
        rows = torch.empty(len(layers.blocks), len(tokens), layers.width)
        with torch.no_grad():
            factors.compute(rows, tokens, factors.inputs(embed(embedding, tokens)))
        tolerance = TOLERANCE[header.dtype]
        if {embedding.weight.dtype, factors.dtype} & {torch.float16, torch.bfloat16}:
            tolerance += HALF_PRECISION
        for block, computed in zip(layers.blocks, rows, strict=True):
            slot = table.layer_slot(block)
            if slot is None:  # a block to which this adapter adds nothing
                continue
            difference = float((computed - stored[:, slot]).abs().max())
            if difference > tolerance * float(computed.abs().max()) + 1e-6:
                raise ValueError(
                    f"expected a table of rows for this backbone, got {table.path} whose rows for {block} differ by "
                    f"{difference:.2g} (another backbone); make it again with `peft-aot fuse`"
                )

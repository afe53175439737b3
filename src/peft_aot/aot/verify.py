"""Whether a table fits what is there: its factors and the backbone.

A hash ties a table to its factors; rows computed anew for a few tokens tie it to the backbone's embeddings too.
"""

from __future__ import annotations

import torch
from torch import nn

from peft_aot.backbone import embed, find_blocks, input_embedding
from peft_aot.tables import Table

from .config import AoTConfig
from .layer import AoTLayer

SAMPLED_TOKENS = 64
# Of the largest row: what storing in a dtype may change, with room; another backbone's rows differ by about their size.
TOLERANCE = {"float32": 1e-3, "float16": 5e-3, "bfloat16": 2e-2, "int8": 2e-2}
HALF_PRECISION = 5e-2


def check_table(table: Table, model: nn.Module, adapter_name: str, config: AoTConfig) -> None:
    """Refuse a table whose rows are not those of the adapter on this backbone.

    Args:
        table: The table.
        model: The backbone with the adapter's layers.
        adapter_name: The adapter's name.
        config: Its configuration.

    Raises:
        ValueError: Other sizes, or rows that differ on sampled tokens.
    """
    header = table.header
    if (header.vocab_size, header.hidden_size) != (config.vocab_size, config.token_dim):
        raise ValueError(
            f"expected a table for vocabulary {config.vocab_size} and width {config.token_dim}, got {table.path} for "
            f"{header.vocab_size} and {header.hidden_size}; make it again with `peft-aot fuse`"
        )
    tokens = torch.linspace(0, header.vocab_size - 1, SAMPLED_TOKENS).long()
    missing = table.missing(tokens)
    tokens = tokens if missing is None else tokens[~missing]
    if not tokens.numel():
        return
    stored = table.rows(tokens).float()
    for block in find_blocks(model):
        layer, embedding, slot = (
            model.get_submodule(block.name),
            input_embedding(block.stack),
            table.layer_slot(block.name),
        )
        if not isinstance(layer, AoTLayer) or adapter_name not in layer.aot_rows or embedding is None or slot is None:
            continue
        module = layer.rows_of(adapter_name)
        with torch.no_grad():
            rows = module(tokens, embed(embedding, tokens)).float().cpu()
        tolerance = TOLERANCE[header.dtype]
        if {embedding.weight.dtype, next(module.parameters()).dtype} & {torch.float16, torch.bfloat16}:
            tolerance += HALF_PRECISION
        difference = float((rows - stored[:, slot]).abs().max())
        if difference > tolerance * float(rows.abs().max()) + 1e-6:
            raise ValueError(
                f"expected a table of rows for this backbone, got {table.path} whose rows for {block.name} differ by "
                f"{difference:.2g} (another backbone); make it again with `peft-aot fuse`"
            )

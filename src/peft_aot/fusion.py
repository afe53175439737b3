"""Fusing a saved adapter: from its factors and the backbone's embeddings to its lookup table."""

from __future__ import annotations

import re
from collections.abc import Iterable
from numbers import Integral
from pathlib import Path

import torch
from peft import PeftConfig
from peft.utils import SAFETENSORS_WEIGHTS_NAME, PeftType
from safetensors import safe_open
from torch import Tensor, nn
from transformers import AutoModel

from peft_aot.aot.config import CANNOT_FUSE_HIDDEN, AoTConfig
from peft_aot.aot.reparam import FCRows, rows_from
from peft_aot.backbone import Block, embed, find_blocks, input_embedding, vocabulary_size
from peft_aot.card import CARD_FILE
from peft_aot.staging import finish
from peft_aot.suggestions import did_you_mean
from peft_aot.tables import TABLE_FILE, FuseReport, TableHeader, write_table
from peft_aot.tables.format import ROW_DTYPES, factors_hash
from peft_aot.tables.fuse import RowFunction
from peft_aot.unfinished import replacing

CONFIG_FILE = "adapter_config.json"
NOT_FUSED = "No fused table is included; `peft-aot fuse DIR` makes one."
FUSED = "A fused lookup table ({dtype}) is included: inference reads one row per token."
_FACTOR = re.compile(r"^base_model\.model\.(?P<block>.+)\.aot_rows\.(?P<factor>\w+)$")


def fuse(
    adapter_dir: str | Path,
    base_model: str | Path | nn.Module | None = None,
    *,
    dtype: str | None = None,
    token_ids: Tensor | Iterable[int] | None = None,
    progress: bool = True,
) -> FuseReport:
    """Write the lookup table of a saved adapter beside its factors.

    Args:
        adapter_dir: A folder that `save_pretrained` wrote.
        base_model: The backbone, as a model or as a path or hub id; by default the one the adapter names.
        dtype: Number format of the rows: float32, float16, bfloat16 or int8; by default the adapter's `table_dtype`.
        token_ids: Keep the rows of these tokens only, given as a tensor or other sequence of whole numbers; the rest is
            computed from the factors when needed.
        progress: Whether to show a progress bar.

    Returns:
        What was written, with the difference between fused and unfused rows on sampled tokens.

    Raises:
        FileNotFoundError: No adapter there.
        TypeError: Token ids that are no whole numbers in a sequence.
        ValueError: An unknown dtype, not an AoT adapter, one that is no lookup, another backbone, or token ids outside
            the vocabulary.
        OSError: No room for the table on the disk, see `write_table`.
    """
    if dtype is not None and dtype not in ROW_DTYPES:
        raise ValueError(f"expected a known dtype, got {dtype!r}; {did_you_mean(str(dtype), ROW_DTYPES)}")
    adapter_dir = Path(adapter_dir)
    finish(adapter_dir, CONFIG_FILE)
    config, factors = read_adapter(adapter_dir)
    if config.bottleneck_input == "hidden":
        raise ValueError(f"{CANNOT_FUSE_HIDDEN}, in {adapter_dir}; use the adapter unfused")
    kept = None if token_ids is None else _checked(token_ids, _known(config.vocab_size))
    header = TableHeader(
        layers=tuple(dict.fromkeys(name for name, _ in factors)),
        base_model=config.base_model_name_or_path or "",
        vocab_size=_known(config.vocab_size),
        hidden_size=_known(config.token_dim),
        factors_sha256=factors_hash({f"{block}.{factor}": tensor for (block, factor), tensor in factors.items()}),
        dtype=config.table_dtype if dtype is None else dtype,
        tokens=_known(config.vocab_size) if kept is None else len(kept),
    )
    if base_model is None:
        base_model, revision = config.base_model_name_or_path, config.revision
    else:
        revision = None
    rows = row_functions(config, factors, load_backbone(base_model, revision))
    report = write_table(adapter_dir / TABLE_FILE, header, rows, kept, progress)
    _state_table(adapter_dir, header.dtype)
    return report


def _state_table(folder: Path, dtype: str) -> None:
    """Say in the card of a folder, if it has one, that a table has been fused into it since."""
    path = folder / CARD_FILE
    if path.is_file():
        text = path.read_text(encoding="utf-8")
        if NOT_FUSED in text:
            with replacing(path) as partial:
                partial.write_text(text.replace(NOT_FUSED, FUSED.format(dtype=dtype)), encoding="utf-8")


def read_adapter(adapter_dir: Path) -> tuple[AoTConfig, dict[tuple[str, str], Tensor]]:
    """Read the configuration and the factors of a saved adapter.

    Returns:
        The configuration, and the factors by (block name, factor name), blocks in order.

    Raises:
        FileNotFoundError: No configuration or no safetensors weights in the folder.
        ValueError: Not an AoT adapter.
    """
    for name in (CONFIG_FILE, SAFETENSORS_WEIGHTS_NAME):
        if not (adapter_dir / name).is_file():
            raise FileNotFoundError(f"expected {name} in {adapter_dir}, got none; pass a folder save_pretrained wrote")
    config = read_config(adapter_dir)
    return config, read_factors(adapter_dir / SAFETENSORS_WEIGHTS_NAME)


def read_config(adapter_dir: Path) -> AoTConfig:
    """Read the configuration of a saved AoT adapter; ValueError if it is another method's."""
    config = PeftConfig.from_pretrained(str(adapter_dir))
    if not isinstance(config, AoTConfig):
        raise ValueError(
            f"expected an AoT adapter in {adapter_dir}, got {PeftType(config.peft_type).value}; only AoT "
            f"has tables to fuse"
        )
    return config


def read_factors(weights: Path) -> dict[tuple[str, str], Tensor]:
    """Read the factors of a saved adapter by (block name, factor name), blocks in the order of their numbers."""
    found: dict[tuple[str, str], Tensor] = {}
    with safe_open(weights, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a mapping
            match = _FACTOR.match(name)
            if match:
                found[match["block"], match["factor"]] = file.get_tensor(name)
    return dict(sorted(found.items(), key=lambda item: (_natural(item[0][0]), item[0][1])))


def load_backbone(base_model: str | Path | nn.Module | None, revision: str | None = None) -> nn.Module:
    """Return the backbone as a module, loading it (at a revision) if a path or hub id is given."""
    if isinstance(base_model, nn.Module):
        return base_model
    if base_model is None:
        raise ValueError("expected a base model, got none in the adapter's configuration; pass base_model")
    try:
        model: nn.Module = AutoModel.from_pretrained(str(base_model), revision=revision or "main")
    except OSError as error:
        raise ValueError(
            f"expected a backbone at '{base_model}', got none there or on the hub ({error}); pass base_model as a path"
        ) from error
    return model


def row_functions(
    config: AoTConfig, factors: dict[tuple[str, str], Tensor], backbone: nn.Module
) -> dict[str, RowFunction]:
    """Return for each block of an adapter the function that computes its rows in float32.

    Raises:
        ValueError: The backbone's blocks or sizes are not those of the adapter, or its vocabularies differ.
    """
    blocks = find_blocks(backbone)
    sizes = {type(block.stack).__name__: vocabulary_size(block.stack) for block in blocks}
    if len(set(sizes.values())) > 1:
        raise ValueError(
            f"expected a backbone whose stacks share a vocabulary, so that a table can have a row per token, got "
            f"{' and '.join(f'{size} tokens in {stack}' for stack, size in sizes.items())}; use the adapter unfused"
        )
    functions = {}
    inputs = _Inputs()
    for name in dict.fromkeys(block for block, _ in factors):
        block = _same_block(name, blocks)
        embedding = input_embedding(block.stack)
        vocab_size = vocabulary_size(block.stack)
        if embedding is None or (vocab_size, block.width) != (config.vocab_size, config.token_dim):
            raise ValueError(
                f"expected a backbone with vocabulary {config.vocab_size} and width {config.token_dim}, got "
                f"{vocab_size} and {block.width}; pass the backbone this adapter was trained on"
            )
        own = {factor: tensor.float() for (owner, factor), tensor in factors.items() if owner == name}
        module = rows_from(config, embedding.embedding_dim, block.width, own)
        functions[name] = _row_function(module, embedding, inputs)
    return functions


class _Inputs:
    """What is computed from the embeddings of some tokens for the first block, kept for the blocks that follow."""

    def __init__(self) -> None:
        self._made_of: tuple[Tensor, nn.Embedding] | None = None
        self._inputs = torch.empty(0)

    def of(self, token_ids: Tensor, embedding: nn.Embedding, module: FCRows) -> Tensor:
        """Return the inputs (U, E) of tokens (U,), which modules of one adapter on one embedding share."""
        made_of = self._made_of
        if made_of is None or made_of[0] is not token_ids or made_of[1] is not embedding:
            self._inputs = module.prepare(embed(embedding, token_ids))
            self._made_of = (token_ids, embedding)
        return self._inputs


def _row_function(module: nn.Module, embedding: nn.Embedding, inputs: _Inputs) -> RowFunction:
    def rows(token_ids: Tensor) -> Tensor:
        if isinstance(module, FCRows):
            computed: Tensor = module(token_ids, inputs.of(token_ids, embedding, module), prepared=True)
        else:
            computed = module(token_ids, embed(embedding, token_ids))
        return computed

    return rows


def _same_block(name: str, blocks: list[Block]) -> Block:
    """Find a block by name; a backbone with another head, or none, has the same names but for a prefix."""
    exact = [block for block in blocks if block.name == name]
    for block in exact or blocks:
        if name == block.name or name.endswith(f".{block.name}") or block.name.endswith(f".{name}"):
            return block
    raise ValueError(
        f"expected a backbone with block {name}, got {blocks[0].name} ... {blocks[-1].name}; pass the backbone this "
        f"adapter was trained on"
    )


def _known(size: int | None) -> int:
    if size is None:
        raise ValueError("expected vocab_size and token_dim in adapter_config.json, got none; save the adapter again")
    return size


def _checked(token_ids: Tensor | Iterable[int], vocab_size: int) -> Tensor:
    several = isinstance(token_ids, Iterable) and getattr(token_ids, "ndim", 1) > 0
    values = token_ids.flatten().tolist() if isinstance(token_ids, Tensor) else list(token_ids) if several else []
    wrong = [value for value in values if isinstance(value, bool) or not isinstance(value, Integral)]
    if wrong or not several:
        raise TypeError(
            f"expected token_ids to be a sequence of whole numbers, got {wrong[0] if wrong else token_ids!r}; pass a "
            f"list of ids or, of a mask, mask.nonzero()"
        )
    ids = sorted({int(value) for value in values})
    if not ids or ids[0] < 0 or ids[-1] >= vocab_size:
        raise ValueError(f"expected token ids in [0, {vocab_size}), got {ids[:3]} ...; pass ids to keep")
    return torch.tensor(ids)


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]

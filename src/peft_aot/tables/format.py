"""The file format of a fused table: `aot_table.safetensors`, version 1.

A safetensors file with

- `rows` (V_kept, L, D), token-major, so that all layers of a token are one contiguous run; float32, float16, bfloat16
  or int8;
- `scales` (V_kept, L) float16, only with int8: a row's value is `rows * scales`;
- `token_ids` (V_kept,) int32 ascending, only if part of the vocabulary is kept;

and string metadata: `format_version`, `layers` (JSON list of block names in order), `base_model`, `vocab_size`,
`hidden_size`, `factors_sha256` (of the factors the rows were computed from). This module knows the layout; `store`
reads it and `fuse` writes it.
"""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

TABLE_FILE = "aot_table.safetensors"
FORMAT_VERSION = "1"
ROW_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}
_SAFETENSORS_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16", "int8": "I8"}
_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2, "I8": 1, "I32": 4}


@dataclass(frozen=True)
class TableHeader:
    """What a table says of itself.

    Attributes:
        layers: Names of the blocks, in the order of the second axis of `rows`.
        base_model: Name or path of the backbone.
        vocab_size: V of the backbone.
        hidden_size: D.
        factors_sha256: Hash of the factors that the rows were computed from, see `factors_hash`.
        dtype: Number format of `rows`: a key of `ROW_DTYPES`.
        tokens: V_kept, equal to `vocab_size` for a complete table.
    """

    layers: tuple[str, ...]
    base_model: str
    vocab_size: int
    hidden_size: int
    factors_sha256: str
    dtype: str
    tokens: int

    @property
    def complete(self) -> bool:
        """Whether every token of the vocabulary has its rows in the table."""
        return self.tokens == self.vocab_size

    @property
    def row_bytes(self) -> int:
        """Bytes of all layers of one token."""
        return len(self.layers) * self.hidden_size * _ITEM_BYTES[_SAFETENSORS_NAMES[self.dtype]]

    def layout(self) -> dict[str, tuple[str, list[int]]]:
        """Return name -> (safetensors dtype, shape) of every tensor of the file, in file order."""
        rows = [self.tokens, len(self.layers), self.hidden_size]
        tensors: dict[str, tuple[str, list[int]]] = {"rows": (_SAFETENSORS_NAMES[self.dtype], rows)}
        if self.dtype == "int8":
            tensors["scales"] = ("F16", rows[:2])
        if not self.complete:
            tensors["token_ids"] = ("I32", rows[:1])
        return tensors

    @property
    def file_bytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.encode()) + sum(tensor_bytes(dtype, shape) for dtype, shape in self.layout().values())

    def encode(self) -> bytes:
        """Return the bytes of the file that come before the tensors."""
        entries: dict[str, object] = {
            "__metadata__": {
                "format_version": FORMAT_VERSION,
                "layers": json.dumps(list(self.layers)),
                "base_model": self.base_model,
                "vocab_size": str(self.vocab_size),
                "hidden_size": str(self.hidden_size),
                "factors_sha256": self.factors_sha256,
            }
        }
        start = 0
        for name, (dtype, shape) in self.layout().items():
            end = start + tensor_bytes(dtype, shape)
            entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
            start = end
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        return struct.pack("<Q", len(text)) + text


def tensor_bytes(dtype: str, shape: list[int]) -> int:
    """Return the bytes of a tensor of a safetensors dtype."""
    size = _ITEM_BYTES[dtype]
    for length in shape:
        size *= length
    return size


def read_header(path: str | Path) -> TableHeader:
    """Read and check the header of a table; the rows are not touched.

    Raises:
        FileNotFoundError: No such file.
        ValueError: Not a table, truncated, or its tensors have another dtype or layout than it says.
    """
    path = Path(path)
    remedy = "make it again with `peft-aot fuse`, or delete it and the factors are used"
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if 8 + length > size:
            raise ValueError(f"expected a complete table, got {path} truncated at {size} bytes; {remedy}")
        try:
            entries = json.loads(file.read(length))
            metadata = entries.pop("__metadata__", {})
            version = metadata.get("format_version")
        except (ValueError, AttributeError, TypeError) as error:
            raise ValueError(f"expected a safetensors header in {path}, got none; {remedy}") from error
    if version != FORMAT_VERSION:
        raise ValueError(f"expected a table of format version {FORMAT_VERSION} in {path}, got {version}; {remedy}")
    try:
        header = _header_of(metadata, entries)
        expected = header.layout()
        found = {name: (entry["dtype"], entry["shape"]) for name, entry in entries.items()}
        end = max(entry["data_offsets"][1] for entry in entries.values())
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise ValueError(f"expected the layout of a table in {path}, got {error!r}; {remedy}") from error
    if found != expected:
        raise ValueError(f"expected tensors {expected} in {path}, got {found}; {remedy}")
    if 8 + length + end != size:
        raise ValueError(f"expected {8 + length + end} bytes in {path}, got {size} (truncated?); {remedy}")
    return header


def rows_start(path: str | Path) -> int:
    """Return where in the file of a table, whose header is right, the rows begin, in bytes."""
    with Path(path).open("rb") as file:
        length = struct.unpack("<Q", file.read(8))[0]
        offset: int = json.loads(file.read(length))["rows"]["data_offsets"][0]
    return 8 + int(length) + offset


def _header_of(metadata: Mapping[str, str], entries: Mapping[str, dict[str, object]]) -> TableHeader:
    rows = entries["rows"]
    shape = rows["shape"]
    dtype = next((name for name, code in _SAFETENSORS_NAMES.items() if code == rows["dtype"]), None)
    if dtype is None or not isinstance(shape, list):
        raise ValueError(f"rows of dtype {rows['dtype']}")
    return TableHeader(
        layers=tuple(json.loads(metadata["layers"])),
        base_model=metadata["base_model"],
        vocab_size=int(metadata["vocab_size"]),
        hidden_size=int(metadata["hidden_size"]),
        factors_sha256=metadata["factors_sha256"],
        dtype=dtype,
        tokens=int(shape[0]),
    )


def factors_hash(factors: Mapping[str, Tensor]) -> str:
    """Return the sha256 of factors as stored: names, dtypes, shapes and bytes, in the order of the names.

    Args:
        factors: The tensors of a saved adapter by their names in its file; those of heads left out.
    """
    digest = hashlib.sha256()
    for name in sorted(factors):
        tensor = factors[name].detach().contiguous().cpu()
        digest.update(f"{name}:{tensor.dtype}:{list(tensor.shape)};".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()

"""Writing a fused table, a chunk of the vocabulary at a time.

Takes functions that compute rows, so that it knows neither adapters nor models. Memory stays flat whatever V, L and D.
"""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor
from tqdm.auto import tqdm

from peft_aot.sizes import format_bytes
from peft_aot.unfinished import replacing

from .format import ROW_DTYPES, TABLE_FILE, TableHeader
from .store import Table

RowFunction = Callable[[Tensor], Tensor]
"""Token ids (U,) int64 -> rows (U, D) of one layer."""

CHUNK_BYTES = 32 * 2**20
SAMPLED_TOKENS = 256
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""What the system says when there is no room: on the disk, for the user, or in one file."""


@dataclass(frozen=True)
class FuseReport:
    """What was written.

    Attributes:
        path: The table.
        header: What it says of itself.
        bytes: Its size.
        max_row_difference: max |row from the table - row from the factors| over `sampled` random tokens, all layers.
        sampled: Number of tokens compared.
    """

    path: Path
    header: TableHeader
    bytes: int
    max_row_difference: float
    sampled: int


def write_table(
    path: str | Path,
    header: TableHeader,
    rows: Mapping[str, RowFunction],
    token_ids: Tensor | None = None,
    progress: bool = True,
) -> FuseReport:
    """Compute every row of a table and write it, atomically: an interrupted write leaves what was there before.

    Args:
        path: The file to write or replace.
        header: Its description; `header.layers` orders the second axis.
        rows: For each layer the function that computes its rows.
        token_ids: (V_kept,) int64 ascending: the tokens to keep, if not all.
        progress: Whether to show a progress bar.

    Returns:
        A report with the difference between rows read back from the file and rows computed anew.

    Raises:
        ValueError: Rows that are not finite, or too large for the dtype.
        OSError: No room for the table: one of `NO_ROOM` if the disk is full, whether seen at once or while writing.
    """
    path = Path(path)
    with _room_for(header, path.parent), replacing(path) as partial:
        with partial.open("wb") as file:
            _write(file, header, rows, token_ids, progress)
        # before it takes its place, where another writer may replace it at once
        size = partial.stat().st_size
        difference, sampled = _compare(partial, header, rows, token_ids)
    return FuseReport(path, header, size, difference, sampled)


def _write(
    file: BinaryIO, header: TableHeader, rows: Mapping[str, RowFunction], token_ids: Tensor | None, progress: bool
) -> None:
    scales: list[Tensor] = []
    file.write(header.encode())
    bar = tqdm(total=header.tokens, desc=f"fusing {TABLE_FILE}", unit="tok", disable=not progress, leave=False)
    with bar:
        for encoded, scale in encoded_chunks(header, rows, token_ids):
            scales += [] if scale is None else [scale]
            file.write(_raw(encoded))
            bar.update(len(encoded))
    for scale in scales:
        file.write(_raw(scale))
    if token_ids is not None and not header.complete:
        file.write(_raw(token_ids.to(torch.int32)))


@contextmanager
def _room_for(header: TableHeader, folder: Path) -> Iterator[None]:
    """Refuse a table that does not fit in a folder; also if that only shows while it is written."""
    remedy = "free some, fuse with dtype='int8' or keep part of the vocabulary with token_ids"
    needed, free = header.file_bytes, shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"expected {format_bytes(needed)} free in {folder} for the table, got {format_bytes(free)}; {remedy}",
        )
    try:
        yield
    except OSError as error:
        if error.errno not in NO_ROOM:
            raise
        raise OSError(
            error.errno,
            f"expected room for a table of {format_bytes(needed)} in {folder}, got '{error.strerror}' while writing; "
            f"{remedy}",
        ) from error


def encoded_chunks(
    header: TableHeader, rows: Mapping[str, RowFunction], token_ids: Tensor | None = None
) -> Iterator[tuple[Tensor, Tensor | None]]:
    """Compute the rows of a table, as they are stored, some tokens at a time.

    Args:
        header: The table's description.
        rows: For each layer the function that computes its rows; all are given the same tensor of ids in turn.
        token_ids: (V_kept,) int64 ascending: the tokens to keep, if not all.

    Yields:
        (rows (U, L, D), with int8 their scales (U, L) or else None); the rows are overwritten by those that follow.

    Raises:
        ValueError: Rows that are not finite, or too large for the dtype.
    """
    width = len(header.layers) * header.hidden_size
    size = min(header.tokens, max(1, CHUNK_BYTES // (width * 4)))
    rows_dtype = ROW_DTYPES[header.dtype]
    encoded = torch.empty(size, len(header.layers), header.hidden_size, dtype=rows_dtype)
    scales = torch.empty(size, len(header.layers), dtype=torch.float16)
    for start in range(0, header.tokens, size):
        stop = min(start + size, header.tokens)
        ids = torch.arange(start, stop) if token_ids is None else token_ids[start:stop]
        part = encoded[: stop - start]
        for slot, name in enumerate(header.layers):  # a layer at a time, while its rows are in the processor's cache
            with torch.no_grad():
                values = rows[name](ids).float().cpu()
                if header.dtype == "int8":
                    quantized, scales[: stop - start, slot] = quantize(values)
                    _refuse_overflow(scales[: stop - start, slot], values, header.dtype)
                    part[:, slot] = quantized
                else:
                    _refuse_overflow(torch.stack(torch.aminmax(values)).to(rows_dtype), values, header.dtype)
                    part[:, slot] = values
        yield part, scales[: stop - start].clone() if header.dtype == "int8" else None


def quantize(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize rows (..., D) to int8 with one float16 scale for each.

    Returns:
        (rows as int8, scales (...) float16) such that `rows * scales` is within half a scale of the input.
    """
    scales = (rows.abs().amax(dim=-1) / 127).to(torch.float16)
    # float16 rounds a scale down as often as up: step to the next one up rather than clip the largest value
    low = scales.float() * 127 < rows.abs().amax(dim=-1)
    scales = torch.where(low, torch.nextafter(scales, torch.full_like(scales, float("inf"))), scales)
    divisor = torch.where(scales == 0, 1, scales.float()).unsqueeze(-1)
    return (rows / divisor).round().clamp(-127, 127).to(torch.int8), scales


def _rows_of(ids: Tensor, header: TableHeader, rows: Mapping[str, RowFunction]) -> Tensor:
    return torch.stack([rows[name](ids).float().cpu() for name in header.layers], dim=1)


def _refuse_overflow(encoded: Tensor, values: Tensor, dtype: str) -> None:
    if not bool(torch.isfinite(encoded).all()):
        raise ValueError(
            f"expected rows that {dtype} can hold, got values up to {float(values.abs().max()):g}; fuse with "
            f"dtype='float32', or look into the training if they are not finite at all"
        )


def _compare(
    path: Path, header: TableHeader, rows: Mapping[str, RowFunction], token_ids: Tensor | None
) -> tuple[float, int]:
    kept = torch.arange(header.tokens) if token_ids is None else token_ids
    pick = torch.randperm(header.tokens, generator=torch.Generator().manual_seed(0))[:SAMPLED_TOKENS]
    ids = kept[pick]
    difference = 0.0
    with torch.no_grad():
        for part in torch.split(ids, 16):
            # mapped anew each time: a page that was touched counts as memory for as long as it is mapped
            fused = Table.open(path).rows(part)
            difference = max(difference, float((fused - _rows_of(part, header, rows)).abs().max()))
    return difference, len(ids)


def _raw(tensor: Tensor) -> memoryview:
    return tensor.contiguous().flatten().view(torch.uint8).numpy().data

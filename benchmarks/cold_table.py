"""How long does the first batch of a cold table take, with and without telling the system which rows will be read?

A table of RoBERTa-base's size (0.93 GB, float16) is written to a temporary file. For every sample the file is unmapped
and dropped from the page cache, then the rows of 64 random tokens are read; with and without read-ahead in turn, and
once more while they are warm. The same rows are read from a file that is layer-major (all tokens of a layer side by
side), as fused tables are not. Rows are compared first.

    python benchmarks/cold_table.py [--folder DIR]

Every run adds one JSON line to results/cold_table.jsonl, with all samples. Needs Linux, and 2 GB on the disk of DIR
(default: the system's folder for temporary files); a file system in memory would make the figures void.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from rich.console import Console

from _record import append
from peft_aot.tables import Table, TableHeader, write_table
from peft_aot.tables.read_ahead import ReadAhead

VOCABULARY, LAYERS, WIDTH = 50_265, 12, 768
TOKENS, SAMPLES = 64, 15
ANNOUNCE = ReadAhead.announce
console = Console()


def write(path: Path) -> torch.Tensor:
    """Write a table whose row for a token is that of its number modulo 1,024; return those rows (1,024, D)."""
    values = torch.randn(1024, WIDTH, generator=torch.Generator().manual_seed(0)).half().float()
    names = tuple(f"layer.{number}" for number in range(LAYERS))
    header = TableHeader(names, "random", VOCABULARY, WIDTH, "0" * 64, "float16", VOCABULARY)
    write_table(path, header, {name: lambda ids: values[ids % 1024] for name in names})
    return values


def write_layer_major(path: Path, values: torch.Tensor) -> None:
    """Write the same rows as (L, V, D), nothing else."""
    rows = values.half()[torch.arange(VOCABULARY) % 1024].numpy().tobytes()
    with path.open("wb") as file:
        for _ in range(LAYERS):
            file.write(rows)


def drop(path: Path) -> None:
    """Write the file out and drop its pages."""
    gc.collect()  # unmaps what is not used any more
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(handle)


def sample(path: Path, values: torch.Tensor, ahead: bool, seed: int) -> tuple[float, float]:
    """Return the milliseconds of a cold and of a warm read of the same rows."""
    drop(path)
    table = Table.open(path)
    tokens = torch.randint(0, VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(seed))
    ReadAhead.announce = ANNOUNCE if ahead else lambda self, rows: None  # type: ignore[method-assign]
    times = []
    for _ in range(2):
        start = time.perf_counter()
        rows = table.rows(tokens)
        times.append((time.perf_counter() - start) * 1000)
        if not torch.equal(rows.float(), values[tokens % 1024].unsqueeze(1).expand(-1, LAYERS, -1)):
            raise RuntimeError("expected the rows that were written, got others; do not time them")
    return times[0], times[1]


def sample_layer_major(path: Path, values: torch.Tensor, ahead: bool, seed: int) -> float:
    """Return the milliseconds of a cold read of the same rows from a layer-major file."""
    drop(path)
    mapped = np.memmap(path, dtype=np.float16, mode="r", shape=(LAYERS, VOCABULARY, WIDTH))
    tokens = torch.randint(0, VOCABULARY, (TOKENS,), generator=torch.Generator().manual_seed(seed))
    start = time.perf_counter()
    if ahead:
        with path.open("rb", buffering=0) as file:
            for layer in range(LAYERS):
                for token in tokens.tolist():
                    offset = (layer * VOCABULARY + token) * WIDTH * 2
                    os.posix_fadvise(file.fileno(), offset, WIDTH * 2, os.POSIX_FADV_WILLNEED)
    rows = torch.from_numpy(mapped[:, tokens.numpy()])
    taken = (time.perf_counter() - start) * 1000
    if not torch.equal(rows.float(), values[tokens % 1024].expand(LAYERS, -1, -1)):
        raise RuntimeError("expected the rows that were written, got others; do not time them")
    return taken


def main() -> None:
    """Measure, show and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    folder = parser.parse_args().folder
    found: dict[str, list[float]] = {"read-ahead": [], "plain": [], "warm": []}
    found |= {"layer-major, read-ahead": [], "layer-major, plain": []}
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        path = Path(temporary) / "aot_table.safetensors"
        values = write(path)
        layer_major = Path(temporary) / "layer_major.bin"
        write_layer_major(layer_major, values)
        shuffle = random.Random(0).sample
        for number in range(SAMPLES):
            for ahead in shuffle([True, False], 2):
                cold, warm = sample(path, values, ahead, number)
                found["read-ahead" if ahead else "plain"].append(round(cold, 3))
                found["warm"].append(round(warm, 3))
                other = sample_layer_major(layer_major, values, ahead, number)
                found["layer-major, read-ahead" if ahead else "layer-major, plain"].append(round(other, 3))
        size = path.stat().st_size
    for name, samples in found.items():
        console.print(f"{name}: {statistics.median(samples):.2f} ms for {TOKENS} tokens (median of {len(samples)})")
    record = {
        "table_bytes": size, "tokens": TOKENS, "milliseconds": found,
    }  # fmt: skip
    append("cold_table", record)


if __name__ == "__main__":
    main()

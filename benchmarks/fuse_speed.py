"""How fast is a table fused: what share of the machine's own rate of matrix products, and how fast is it written?

An AoT-FC adapter of RoBERTa-base's size (r = 64, 12 x 768, V 50,265, random values) is fused to float16. In every
round, in an order shuffled anew: computing all rows as `fuse` does (products, activation, conversion, checks; nothing
is written), the bare products of the same shapes and number (their results thrown away), one product of large square
matrices, and the whole of `fuse`. Apart from that the same bytes are written and flushed in the same pieces. Before
anything is timed, rows must be those that the adapter's modules compute. The arithmetic of the rows is
2 V L R (E + D) operations; the target is computing above 50 % of the rate of the bare products.

    python benchmarks/fuse_speed.py [--folder DIR] [--rounds N] [--vocabulary V]

Every run adds one JSON line to results/fuse_speed.jsonl, with all samples. Needs 2 GB on the disk of DIR (default: the
system's folder for temporary files); a file system in memory would make the rate of writing void.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from transformers import RobertaConfig, RobertaModel

from _record import append
from peft_aot import AoTConfig, fuse
from peft_aot.aot.layer import AoTLayer
from peft_aot.backbone import embed, input_embedding
from peft_aot.cli.quiet import quiet_libraries
from peft_aot.fusion import read_adapter, row_functions
from peft_aot.tables import TableHeader
from peft_aot.tables.fuse import CHUNK_BYTES, RowFunction, encoded_chunks
from peft_aot.timing import Timing, interleave

LAYERS, WIDTH, RANK, SQUARE = 12, 768, 64, 2048
TARGET = 0.5
console = Console()


@dataclass(frozen=True)
class Work:
    """An adapter to fuse, and the functions of its rows."""

    folder: Path
    backbone: nn.Module
    header: TableHeader
    rows: dict[str, RowFunction]

    @property
    def chunk(self) -> int:
        """Tokens that `fuse` computes at a time."""
        return CHUNK_BYTES // (LAYERS * WIDTH * 4)

    @property
    def operations(self) -> int:
        """Multiplications and additions of all rows."""
        return 2 * self.header.tokens * LAYERS * RANK * (WIDTH + WIDTH)

    @torch.no_grad()
    def compute(self) -> None:
        """Compute all rows as `fuse` does."""
        for _ in encoded_chunks(self.header, self.rows):
            pass

    @torch.no_grad()
    def multiply(self) -> None:
        """Make the products of all rows, and nothing else."""
        x, w1, w2 = torch.randn(self.chunk, WIDTH), torch.randn(WIDTH, RANK), torch.randn(RANK, WIDTH)
        hidden, found = torch.empty(self.chunk, RANK), torch.empty(self.chunk, WIDTH)
        for start in range(0, self.header.tokens, self.chunk):
            size = min(self.chunk, self.header.tokens - start)
            for _ in range(LAYERS):
                torch.mm(x[:size], w1, out=hidden[:size])
                torch.mm(hidden[:size], w2, out=found[:size])

    def whole(self) -> None:
        """Fuse, from the files to the files."""
        fuse(self.folder, self.backbone, progress=False)

    def write(self) -> None:
        """Write and flush as many bytes, in the same pieces."""
        piece = memoryview(os.urandom(self.chunk * self.header.row_bytes))
        with (self.folder / "written").open("wb") as file:
            for start in range(0, self.header.tokens, self.chunk):
                file.write(piece[: min(self.chunk, self.header.tokens - start) * self.header.row_bytes])
            file.flush()
            os.fsync(file.fileno())
        (self.folder / "written").unlink()


def prepare(folder: Path, vocabulary: int) -> Work:
    """Save an adapter with random values, and make sure that rows are what its modules compute."""
    sizes = RobertaConfig(vocab_size=vocabulary, max_position_embeddings=514, type_vocab_size=1)
    model = get_peft_model(RobertaModel(sizes), AoTConfig(r=RANK, init_weights=False))
    model.save_pretrained(str(folder))
    layers = [module for module in model.modules() if isinstance(module, AoTLayer)]
    config, factors = read_adapter(folder)
    backbone = RobertaModel(sizes)
    backbone.load_state_dict(model.unload().state_dict())
    rows = row_functions(config, factors, backbone)
    header = TableHeader(tuple(rows), "random", vocabulary, WIDTH, "0" * 64, "float16", vocabulary)
    work = Work(folder, backbone, header, rows)
    embedding = input_embedding(backbone)
    if embedding is None:
        raise RuntimeError("expected a backbone that embeds token ids, got none")
    ids = torch.arange(vocabulary)[: work.chunk]
    found = next(encoded_chunks(header, rows))[0].float()
    for slot, layer in enumerate(layers):
        expected: Tensor = layer.rows_of("default")(ids, embed(embedding, ids)).detach()
        if not torch.allclose(found[:, slot], expected, atol=2e-3, rtol=2e-3):
            raise RuntimeError(f"expected the rows of block {slot}, got others; do not trust any timing")
    return work


def write_samples(work: Work, rounds: int) -> list[float]:
    """Return the milliseconds of writing the table's bytes, after one time that does not count."""
    samples = []
    for _ in range(rounds + 1):
        start = time.perf_counter()
        work.write()
        samples.append((time.perf_counter() - start) * 1000)
    return samples[1:]


def record_of(work: Work, timings: dict[str, Timing], written: list[float]) -> dict[str, Any]:
    """Turn times into rates, and into shares of the same round's rate."""
    bare, rows = timings["products"], timings["rows"]
    shares = [mine / its for mine, its in zip(bare.samples, rows.samples, strict=True)]
    size = work.header.tokens * work.header.row_bytes
    return {
        "vocabulary": work.header.tokens,
        "operations": work.operations,
        "table_bytes": size,
        "rows_gflops": round(work.operations / rows.milliseconds / 1e6, 2),
        "products_gflops": round(work.operations / bare.milliseconds / 1e6, 2),
        "square_gflops": round(2 * SQUARE**3 / timings["square"].milliseconds / 1e6, 2),
        "share_of_products": round(statistics.median(shares), 4),
        "share_quartiles": [round(share, 4) for share in statistics.quantiles(shares, n=4, method="inclusive")[::2]],
        "write_mb_per_s": round(size / statistics.median(written) / 1e3, 1),
        "milliseconds": {name: [round(s, 1) for s in t.samples] for name, t in timings.items()} | {"write": written},
    }


def main() -> None:
    """Measure, show and record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure")
    parser.add_argument("--rounds", type=int, default=9, help="rounds that count")
    parser.add_argument("--vocabulary", type=int, default=50_265)
    arguments = parser.parse_args()
    quiet_libraries()
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(dir=arguments.folder) as temporary:
        work = prepare(Path(temporary), arguments.vocabulary)
        a, b = torch.randn(SQUARE, SQUARE), torch.randn(SQUARE, SQUARE)
        steps: dict[str, Callable[[], object]] = {
            "products": work.multiply, "rows": work.compute, "square": lambda: a @ b, "fuse": work.whole,
        }  # fmt: skip
        timings = interleave(steps, "products", rounds=arguments.rounds, warmup=1)
        written = [round(sample, 1) for sample in write_samples(work, arguments.rounds)]
    record = record_of(work, timings, written)
    table = Table(title=f"V {work.header.tokens:,}, {LAYERS} x {WIDTH}, r = {RANK}, float16")
    for column in ("what", "median", "rate"):
        table.add_column(column, justify="right")
    table.add_row("bare products", f"{timings['products'].milliseconds:.0f} ms", f"{record['products_gflops']} GFLOP/s")
    table.add_row("large square product", "", f"{record['square_gflops']} GFLOP/s")
    table.add_row("computing rows", f"{timings['rows'].milliseconds:.0f} ms", f"{record['rows_gflops']} GFLOP/s")
    table.add_row("writing", f"{statistics.median(written):.0f} ms", f"{record['write_mb_per_s']} MB/s")
    table.add_row("fuse, all of it", f"{timings['fuse'].milliseconds:.0f} ms", "")
    console.print(table)
    low, high = record["share_quartiles"]
    verdict = "reached" if record["share_of_products"] >= TARGET else "missed"
    console.print(f"computing: {record['share_of_products']:.0%} ({low:.0%}-{high:.0%}) of bare products, {verdict}")
    append("fuse_speed", record)


if __name__ == "__main__":
    main()

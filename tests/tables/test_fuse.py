"""Writing a table: right numbers, all or nothing, flat memory."""

from __future__ import annotations

import os
import resource
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from interruption import in_child
from peft_aot.tables import Table, TableHeader, fuse, write_table
from peft_aot.tables.fuse import quantize

LAYERS = ("a.0", "a.1")


def header(vocab: int = 64, width: int = 8, dtype: str = "float32", tokens: int | None = None) -> TableHeader:
    return TableHeader(LAYERS, "tiny", vocab, width, "a" * 64, dtype, tokens or vocab)


def constant(value: float, width: int = 8) -> dict[str, object]:
    return dict.fromkeys(LAYERS, lambda ids: torch.full((len(ids), width), value))


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuse, "CHUNK_BYTES", 5 * len(LAYERS) * 8 * 4)  # five tokens, which do not divide 64


@pytest.mark.parametrize(
    ("dtype", "atol"), [("float32", 0), ("float16", 2e-3), ("bfloat16", 2e-2), ("int8", 4 / 127 / 2 + 1e-3)]
)
@pytest.mark.parametrize("kept", [None, torch.tensor([0, 1, 5, 17, 18, 40, 63])])
def test_chunks_join(small_chunks: None, dtype: str, atol: float, kept: torch.Tensor | None, tmp_path: Path) -> None:
    table = torch.randn(64, 2, 8, generator=torch.Generator().manual_seed(1)).clamp(-4, 4)
    asked: list[int] = []

    def rows(ids: torch.Tensor, layer: int) -> torch.Tensor:
        asked.append(len(ids))
        return table[ids, layer]

    functions = {name: (lambda ids, i=i: rows(ids, i)) for i, name in enumerate(LAYERS)}
    tokens = None if kept is None else len(kept)
    report = write_table(tmp_path / "t", header(dtype=dtype, tokens=tokens), functions, kept, progress=False)
    assert asked[0] == 5, "written in chunks"
    ids = torch.arange(64) if kept is None else kept
    found = Table.open(tmp_path / "t").rows(ids).float()
    assert (found - table[ids]).abs().max() <= atol
    assert report.max_row_difference == pytest.approx(float((found - table[ids]).abs().max()))
    assert report.sampled == len(ids)
    assert report.bytes == report.header.file_bytes == (tmp_path / "t").stat().st_size


ROW = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=6)


@settings(deadline=None)
@given(ROW)
def test_quantized_rows_are_within_half_a_scale(values: list[float]) -> None:
    rows = torch.tensor(values).view(1, 1, -1)
    quantized, scales = quantize(rows)
    assert quantized.dtype == torch.int8 and scales.dtype == torch.float16
    found = quantized.float() * scales.float().unsqueeze(-1)
    assert (found - rows).abs().max() <= scales.float().max() / 2 * (1 + 1e-5)


@settings(max_examples=200, deadline=None)
@given(st.floats(2.0**-40, 8e6, width=32))
def test_the_largest_value_is_never_clipped(largest: float) -> None:
    rows = torch.tensor([[[largest, -largest, 0.0]]])
    quantized, scales = quantize(rows)
    assert float(scales) * 127 >= largest
    assert quantized[0, 0].tolist()[2] == 0
    # the scale is the smallest float16 that does it
    below = torch.nextafter(scales, torch.zeros_like(scales))
    assert float(below) * 127 < largest


def test_zero_rows_stay_zero() -> None:
    quantized, scales = quantize(torch.zeros(2, 3, 4))
    assert not quantized.any() and not scales.any()


@pytest.mark.parametrize(
    ("dtype", "value", "fits"),
    [
        ("float16", 6e4, True),
        ("float16", 7e4, False),
        ("bfloat16", 7e4, True),
        ("int8", 8e6, True),
        ("int8", 9e6, False),
        ("float32", 1e38, True),
        ("float32", float("inf"), False),
        ("int8", float("nan"), False),
    ],
)
def test_rows_too_large_are_refused(dtype: str, value: float, fits: bool, tmp_path: Path) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"older")
    if fits:
        report = write_table(path, header(dtype=dtype), constant(value), progress=False)
        assert report.max_row_difference <= abs(value) / 100
        return
    with pytest.raises(ValueError, match=rf"expected rows that {dtype} can hold, got values up to .*dtype='float32'"):
        write_table(path, header(dtype=dtype), constant(value), progress=False)
    assert [p.name for p in tmp_path.iterdir()] == ["t"] and path.read_bytes() == b"older"


def test_a_failure_midway_leaves_the_older_table(small_chunks: None, tmp_path: Path) -> None:
    path = tmp_path / "t"
    write_table(path, header(), constant(1.0), progress=False)
    before = path.read_bytes()

    def rows(ids: torch.Tensor) -> torch.Tensor:
        if int(ids[0]) >= 30:
            raise RuntimeError("out of memory")
        return torch.zeros(len(ids), 8)

    with pytest.raises(RuntimeError, match="out of memory"):
        write_table(path, header(), dict.fromkeys(LAYERS, rows), progress=False)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["t"]


def test_a_killed_process_leaves_the_older_table(small_chunks: None, tmp_path: Path) -> None:
    path = tmp_path / "t"
    write_table(path, header(), constant(1.0), progress=False)
    before = path.read_bytes()

    def rows(ids: torch.Tensor) -> torch.Tensor:
        if int(ids[0]) >= 30:
            os._exit(9)
        return torch.zeros(len(ids), 8)

    assert in_child(lambda: write_table(path, header(), dict.fromkeys(LAYERS, rows), progress=False)) == 9
    assert path.read_bytes() == before
    write_table(path, header(), constant(2.0), progress=False)
    assert float(Table.open(path).rows(torch.tensor([3])).max()) == 2.0


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KB on Linux")
@pytest.mark.parametrize(
    ("tokens", "chunk", "allowed"),
    [(25_600, 8, 100), pytest.param(153_600, 32, 300, marks=pytest.mark.slow)],
    ids=["200 MB", "1.2 GB"],
)
def test_memory_stays_flat(
    tokens: int, chunk: int, allowed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fuse, "CHUNK_BYTES", chunk * 2**20)
    layers = tuple(f"a.{i}" for i in range(8))
    rows = dict.fromkeys(layers, lambda ids: torch.ones(len(ids), 512) * ids.unsqueeze(1).float().sqrt())

    def peak() -> float:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024

    def write(tokens: int) -> None:
        big = TableHeader(layers, "tiny", tokens, 512, "a" * 64, "float16", tokens)
        write_table(tmp_path / "t", big, rows, progress=False)

    def measure() -> None:
        write(256)
        before = peak()
        write(tokens)
        (tmp_path / "growth").write_text(str(peak() - before), encoding="utf-8")

    assert in_child(measure) == 0
    size = (tmp_path / "t").stat().st_size / 2**20
    growth = float((tmp_path / "growth").read_text(encoding="utf-8"))
    assert size > 199 and growth < allowed, f"{growth:.0f} MB more memory for a table of {size:.0f} MB"

"""Reading rows from a table: the right ones, without reading the file."""

from __future__ import annotations

import copy
import os
import pickle
import resource
import sys
from pathlib import Path

import pytest
import torch

from peft_aot.tables import Table, TableHeader, write_table

LAYERS = ("a.0", "a.1", "a.2")
TABLE = torch.randn(20, 3, 4, generator=torch.Generator().manual_seed(0))
ROWS = {name: (lambda ids, i=i: TABLE[ids, i]) for i, name in enumerate(LAYERS)}


def table(path: Path, dtype: str = "float32", kept: torch.Tensor | None = None) -> Table:
    header = TableHeader(LAYERS, "tiny", 20, 4, "a" * 64, dtype, 20 if kept is None else len(kept))
    write_table(path, header, ROWS, kept, progress=False)
    return Table.open(path)


@pytest.mark.parametrize(("dtype", "atol"), [("float32", 0), ("float16", 2e-3), ("bfloat16", 2e-2), ("int8", 2e-2)])
def test_rows(dtype: str, atol: float, tmp_path: Path) -> None:
    ids = torch.tensor([7, 0, 19, 7])
    opened = table(tmp_path / "t", dtype)
    found = opened.rows(ids)
    assert found.shape == (4, 3, 4) and found.dtype == getattr(torch, dtype if dtype != "int8" else "float32")
    torch.testing.assert_close(found.float(), TABLE[ids], atol=atol, rtol=0)
    assert opened.missing(ids) is None
    assert [opened.layer_slot(name) for name in (*LAYERS, "b.0")] == [0, 1, 2, None]
    assert opened.rows(torch.tensor([], dtype=torch.long)).shape == (0, 3, 4)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_partial(dtype: str, tmp_path: Path) -> None:
    kept = torch.tensor([2, 3, 11, 19])
    opened = table(tmp_path / "t", dtype, kept)
    ids = torch.tensor([11, 4, 2, 0])
    missing = opened.missing(ids)
    assert missing is not None and missing.tolist() == [False, True, False, True]
    torch.testing.assert_close(opened.rows(ids)[~missing], TABLE[ids[~missing]], atol=0.02 * (dtype == "int8"), rtol=0)


def test_stale(tmp_path: Path) -> None:
    table(tmp_path / "t")
    assert Table.open(tmp_path / "t", "a" * 64).header.tokens == 20
    with pytest.raises(
        ValueError, match=r"expected a table of factors bbbbbbbbbbbb, got .* of factors aaaaaaaaaaaa \("
    ):
        Table.open(tmp_path / "t", "b" * 64)


def test_copies_share_the_mapping(tmp_path: Path) -> None:
    opened = table(tmp_path / "t")
    assert copy.deepcopy(opened) is opened
    assert len(pickle.dumps(opened)) < 1000, "a pickle names the file"
    again = pickle.loads(pickle.dumps(opened))
    assert torch.equal(again.rows(torch.arange(20)), TABLE)


def resident() -> float:
    """MB of memory in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads memory use as Linux tells it")
def test_mapped_not_read(tmp_path: Path) -> None:
    header = TableHeader(("a.0",), "tiny", 50_000, 4096, "a" * 64, "float16", 50_000)
    start = header.encode()
    path = tmp_path / "t"
    with path.open("wb") as file:
        file.write(start)
        file.truncate(len(start) + 50_000 * 4096 * 2)  # 400 MB, a hole
    before = resident()
    opened = Table.open(path)
    assert resident() - before < 20, "MB; the file holds 400"
    rows = opened.rows(torch.arange(0, 50_000, 5000))
    assert resident() - before < 60
    assert not rows.any()


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the system cannot be told")
def test_the_system_is_told_once_which_rows_will_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = table(tmp_path / "t")
    told: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, size, advice: told.append((start, size)))
    opened.rows(torch.tensor([7, 0, 19]))
    content = (tmp_path / "t").read_bytes()
    for (start, size), token in zip(told, (7, 0, 19), strict=True):
        assert content[start : start + size] == TABLE[token].numpy().tobytes()
    told.clear()
    opened.rows(torch.tensor([7, 3]))
    assert [size for _, size in told] == [3 * 4 * 4], "3 alone is new"
    opened.rows(torch.tensor([7, 3, 0]))
    assert len(told) == 1


def test_rows_outlive_their_file(tmp_path: Path) -> None:
    opened = table(tmp_path / "t")
    (tmp_path / "t").unlink()
    assert torch.equal(opened.rows(torch.tensor([7, 0])), TABLE[[7, 0]])


def test_a_table_opened_in_inference_mode_serves_outside(tmp_path: Path) -> None:
    table(tmp_path / "t")
    with torch.inference_mode():
        opened = Table.open(tmp_path / "t")
    assert torch.equal(opened.rows(torch.tensor([7, 0])), TABLE[[7, 0]])

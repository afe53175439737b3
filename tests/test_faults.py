"""What a model does when a table goes wrong while it is used, and what saving and fusing do without room."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import warnings
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from torch import nn

import peft_aot
from backbones import build, inputs, output
from interruption import exit_code, in_child, start
from models import adapted
from peft_aot import fusion
from peft_aot.aot import staged_rows
from peft_aot.tables import TABLE_FILE, Table, TableHeader, read_header, write_table
from peft_aot.tables import fuse as writing

BATCH = inputs("bert", "SEQ_CLS")
TASK = "FEATURE_EXTRACTION"  # without a head, of which two adapters that are active together can have one
CHANGED = "expected the table .* as it was mapped, got it written to in place since; .*Until then the factors are used"


def answers(model: nn.Module, **kwargs: object) -> torch.Tensor:
    with torch.no_grad():
        return output(model, BATCH, **kwargs)


def two_adapters(folder: Path, **options: object) -> PeftModel:
    """ "a" and "b", with tables so coarse that answers from factors are told from answers from a table."""
    for seed, name in enumerate(("a", "b")):
        if not (folder / name).exists():
            model = adapted("bert", TASK, seed=seed, fuse_on_save=True, table_dtype="int8")
            model.save_pretrained(folder / name)
            os.utime(folder / name / TABLE_FILE, ns=(0, 10**18))
    model = PeftModel.from_pretrained(build("bert", TASK), folder / "a", adapter_name="a", **options)
    model.load_adapter(folder / "b", adapter_name="b", **options)
    return model


def overwrite(folder: Path) -> None:
    path = folder / TABLE_FILE
    with path.open("r+b") as file:
        file.seek(-7_000, os.SEEK_END)
        file.write(b"\x11" * 7_000)


def empty(folder: Path) -> None:
    os.truncate(folder / TABLE_FILE, 0)


@pytest.mark.parametrize("change", [overwrite, empty])
@pytest.mark.parametrize("stage_bytes", [staged_rows.STAGE_BYTES, 0], ids=["all blocks", "each block"])
@pytest.mark.parametrize("way", ["one adapter", "mixed batch", "sum"])
def test_a_table_changed_in_place_gives_way_to_the_factors(
    way: str, stage_bytes: int, change: Callable[[Path], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(staged_rows, "STAGE_BYTES", stage_bytes)
    fused, plain = two_adapters(tmp_path), two_adapters(tmp_path, use_table=False)
    options = {"adapter_names": ["a", "b", "__base__"]} if way == "mixed batch" else {}
    if way == "sum":
        for model in (fused, plain):
            model.base_model.set_adapter(["a", "b"], inference_mode=True)
    plain.base_model.lookup.tables["b"] = fused.base_model.lookup.tables["b"]  # which stays as it is
    expected = answers(plain, **options)

    def work() -> None:
        assert not torch.allclose(answers(fused, **options), expected, atol=1e-5), "the table is used"
        change(tmp_path / "a")
        with pytest.warns(UserWarning, match=CHANGED) as warned:
            found = answers(fused, **options)
        assert len(warned) == 1
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        assert list(fused.base_model.lookup.tables) == ["b"]
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            torch.testing.assert_close(answers(fused, **options), found)

    assert in_child(work) == 0, "in a child, since touching rows that are gone ends the process"


def test_a_new_table_beside_a_model_in_use(tmp_path: Path) -> None:
    model = two_adapters(tmp_path)
    before = answers(model)
    adapted("bert", TASK, seed=9, fuse_on_save=True).save_pretrained(tmp_path / "a")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(answers(model), before)
    shutil.rmtree(tmp_path / "a")
    assert torch.equal(answers(model), before)


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), FileNotFoundError(2, "No such file")])
def test_a_table_that_cannot_be_opened(error: OSError, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> Table:
        raise error

    plain = two_adapters(tmp_path, use_table=False)
    monkeypatch.setattr(Table, "open", refuse)
    with pytest.warns(
        UserWarning, match=r"expected a table that can be read, got \[Errno .*; make it readable and loa"
    ):
        model = two_adapters(tmp_path)
    assert torch.equal(answers(model), answers(plain)) and not model.base_model.lookup.tables


# no room

LAYERS = ("a.0", "a.1")
Usage = namedtuple("Usage", "total used free")


def table_header(tokens: int = 1000, dtype: str = "float32") -> TableHeader:
    return TableHeader(LAYERS, "tiny", tokens, 8, "a" * 64, dtype, tokens)


def constant(value: float) -> dict[str, object]:
    return dict.fromkeys(LAYERS, lambda ids: torch.full((len(ids), 8), value))


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_table_that_does_not_fit_is_refused_before_a_row_is_computed(
    dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "t"
    header = table_header(dtype=dtype)
    write_table(path, header, constant(1.0), progress=False)
    before, size = content(tmp_path), path.stat().st_size
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**6, 0, size - 1))
    rows = dict.fromkeys(LAYERS, lambda ids: pytest.fail("computed"))
    with pytest.raises(
        OSError, match=r"expected .* kB free in .* for the table, got .* kB; free some, fuse with"
    ) as caught:
        write_table(path, header, rows, progress=False)
    assert caught.value.errno == errno.ENOSPC and content(tmp_path) == before
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**6, 0, size))
    write_table(path, header, constant(2.0), progress=False)
    assert content(tmp_path) != before


@pytest.mark.parametrize("room", [10, 20_000, 63_999])
def test_a_disk_that_becomes_full_while_writing(room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "CHUNK_BYTES", 8_000)
    path = tmp_path / "t"
    write_table(path, table_header(), constant(1.0), progress=False)
    before = content(tmp_path)

    def work() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))  # the system refuses to write more into one file
        with pytest.raises(OSError, match=r"expected room for a table of 64.. kB in .*, got 'File too large' while wr"):
            write_table(path, table_header(), constant(2.0), progress=False)

    assert in_child(work) == 0
    assert content(tmp_path) == before, "what was there stays, and nothing is left over"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_a_disk_that_proves_full_when_flushed(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "t"
    path.write_bytes(b"older")

    def full(handle: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError) as caught:
        write_table(path, table_header(), constant(2.0), progress=False)
    assert ("expected room for a table" in str(caught.value)) is (code != errno.EIO), "others are left as they are"
    assert caught.value.errno == code and content(tmp_path) == {"t": b"older"}


def test_an_adapter_whose_table_does_not_fit_is_saved_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted("bert", fuse_on_save=True).save_pretrained(tmp_path)
    model = adapted("bert", seed=9, fuse_on_save=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(10**6, 0, 1000))
    with pytest.warns(UserWarning, match=r"got 1 kB; free some.*The adapter is saved without its table"):
        model.save_pretrained(tmp_path)
    assert not (tmp_path / TABLE_FILE).exists()
    assert "No fused table" in (tmp_path / "README.md").read_text(encoding="utf-8")
    assert torch.equal(answers(PeftModel.from_pretrained(build("bert"), tmp_path)), answers(model))
    with pytest.raises(
        OSError, match="got 1 kB; free some, fuse with dtype='int8' or keep part of the vocabulary with"
    ):
        peft_aot.fuse(tmp_path, build("bert"), progress=False)


def test_another_fault_of_the_disk_stops_a_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    adapted("bert", fuse_on_save=True).save_pretrained(tmp_path)
    before = content(tmp_path)

    def broken(*_: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(fusion, "write_table", broken)
    with pytest.raises(OSError, match="Input/output error"):
        adapted("bert", seed=9, fuse_on_save=True).save_pretrained(tmp_path)
    assert content(tmp_path) == before


# several at once


def test_threads_that_fuse_into_one_folder(tmp_path: Path) -> None:
    import threading
    from concurrent.futures import ThreadPoolExecutor

    together = threading.Barrier(2, timeout=60)

    def rows(value: float) -> dict[str, object]:
        def row(ids: torch.Tensor) -> torch.Tensor:
            together.wait()  # both are writing
            return torch.full((len(ids), 8), value)

        return dict.fromkeys(LAYERS, row)

    def work(value: float) -> float:
        return write_table(tmp_path / "t", table_header(64), rows(value), progress=False).max_row_difference

    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(work, (1.0, 2.0))) == [0, 0]
    assert os.listdir(tmp_path) == ["t"]
    found = Table.open(tmp_path / "t").rows(torch.arange(64))
    assert found.unique().tolist() in ([1.0], [2.0])


def test_processes_that_fuse_into_one_folder(tmp_path: Path) -> None:
    model = adapted("bert")
    model.save_pretrained(tmp_path)
    backbone = build("bert")

    def work(dtype: str) -> Callable[[], None]:
        def fuse() -> None:
            for _ in range(15):
                report = peft_aot.fuse(tmp_path, backbone, dtype=dtype, progress=False)
                assert report.header.dtype == dtype and report.max_row_difference < 1e-2

        return fuse

    children = [start(work(dtype)) for dtype in ("float32", "float16")]
    assert [exit_code(child) for child in children] == [0, 0]
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    assert read_header(tmp_path / TABLE_FILE).dtype in ("float32", "float16")
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        loaded = PeftModel.from_pretrained(build("bert"), tmp_path)
        torch.testing.assert_close(answers(loaded), answers(model), atol=2e-3, rtol=1e-3)
    assert "A fused lookup table" in (tmp_path / "README.md").read_text(encoding="utf-8")

"""A table whose file is changed while it is in use: rows as they were, or none."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interruption import in_child
from peft_aot.tables import Table, TableChanged, TableHeader, store, write_table

LAYERS = ("a.0", "a.1")
VOCAB, WIDTH = 64, 256  # 128 kB: many pages
VALUES = torch.randn(VOCAB, 2, WIDTH, generator=torch.Generator().manual_seed(0))
ASKED = torch.tensor([3, 63])
CHANGED = r"expected the table .*/t as it was mapped, got it written to in place since; load the adapter again"


def write(path: Path, values: torch.Tensor = VALUES) -> None:
    rows = {name: (lambda ids, i=i: values[ids, i]) for i, name in enumerate(LAYERS)}
    header = TableHeader(LAYERS, "tiny", VOCAB, WIDTH, "a" * 64, "float32", VOCAB)
    write_table(path, header, rows, progress=False)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "t")
    os.utime(tmp_path / "t", ns=(0, 10**18))  # not this very tick of the clock, in which a change could not be seen
    return tmp_path / "t"


def overwrite(path: Path) -> None:
    """The same size, other rows."""
    with path.open("r+b") as file:
        file.seek(-WIDTH, os.SEEK_END)
        file.write(b"\0" * WIDTH)


@pytest.mark.parametrize(
    "change",
    [
        overwrite,
        lambda path: os.truncate(path, 0),
        lambda path: os.truncate(path, 4096),
        lambda path: path.open("ab").write(b"\0"),
        lambda path: path.write_bytes(path.read_bytes()),
    ],
    ids=["overwritten", "emptied", "shortened", "lengthened", "copied over"],
)
@pytest.mark.parametrize("read_before", [True, False])
def test_rows_of_a_file_changed_in_place_are_refused(
    read_before: bool, change: Callable[[Path], object], path: Path
) -> None:
    def work() -> None:
        opened = Table.open(path)
        if read_before:
            assert torch.equal(opened.rows(ASKED), VALUES[ASKED])
        change(path)
        with pytest.raises(TableChanged, match=CHANGED):
            opened.rows(ASKED)

    assert in_child(work) == 0, "in a child, since touching rows that are gone ends the process"


@pytest.mark.parametrize(
    "change",
    [
        os.unlink,
        lambda path: write(path, VALUES + 1),
        lambda path: os.rename(path, path.with_name("elsewhere")),
        lambda path: os.chmod(path, 0),
        lambda path: os.rename(path.parent, path.parent.with_name(f"{path.parent.name} elsewhere")),
    ],
    ids=["deleted", "replaced", "moved", "made unreadable", "folder moved"],
)
def test_rows_of_a_file_that_is_no_longer_there_stay_right(change: Callable[[Path], object], path: Path) -> None:
    opened = Table.open(path)
    change(path)
    assert torch.equal(opened.rows(ASKED), VALUES[ASKED])


def test_rows_of_a_file_that_changes_while_they_are_read(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Table.open(path)
    read = opened._read

    def torn(*asked: Any) -> torch.Tensor:
        rows = read(*asked)
        overwrite(path)
        return rows

    monkeypatch.setattr(opened, "_read", torn)
    with pytest.raises(TableChanged, match=CHANGED):
        opened.rows(ASKED)


def test_a_change_is_seen_from_another_folder(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(path.parent)
    opened = Table.open(path.name)
    monkeypatch.chdir("/")
    overwrite(path)
    with pytest.raises(TableChanged):
        opened.rows(ASKED)


def test_a_pickle_opens_what_is_there(path: Path) -> None:
    opened = Table.open(path)
    overwrite(path)
    again = pickle.loads(pickle.dumps(opened))
    assert torch.equal(again.rows(ASKED)[0], VALUES[3]) and not torch.equal(again.rows(ASKED)[1], VALUES[63])


@pytest.mark.parametrize("change", [lambda path: write(path, VALUES + 1), overwrite], ids=["replaced", "overwritten"])
def test_a_file_that_changes_while_it_is_opened(
    change: Callable[[Path], object], path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = store.read_header

    def late(path: Path) -> TableHeader:
        header = read(path)
        monkeypatch.setattr(store, "read_header", read)
        change(path)
        return header

    monkeypatch.setattr(store, "read_header", late)
    with pytest.raises(ValueError, match="expected a table that stays as it is while it is opened, got .*; open it ag"):
        Table.open(path)
    Table.open(path)


def test_graphs_do_not_look(path: Path) -> None:
    opened = Table.open(path)
    compiled = torch.compile(opened.rows, backend="eager", fullgraph=True)
    assert torch.equal(compiled(ASKED), VALUES[ASKED])

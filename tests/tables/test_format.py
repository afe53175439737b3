"""The bytes of a table, and what is said of files that are none."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from peft_aot.tables import Table, TableHeader, read_header, write_table
from peft_aot.tables.format import factors_hash

HEADER = TableHeader(
    layers=("a.0", "a.1"),
    base_model="tiny",
    vocab_size=3,
    hidden_size=2,
    factors_sha256="f" * 64,
    dtype="float16",
    tokens=3,
)
GOLDEN_HEADER = (
    b'{"__metadata__":{"format_version":"1","layers":"[\\"a.0\\", \\"a.1\\"]","base_model":"tiny","vocab_size":"3",'
    b'"hidden_size":"2","factors_sha256":"' + b"f" * 64 + b'"},'
    b'"rows":{"dtype":"F16","shape":[3,2,2],"data_offsets":[0,24]}}'
)
GOLDEN_SHA256 = {
    "float16": "cd0f3b0933b5eccb2690583bdea947ffc902bc2fee0128a0d4d7ed60da869eea",
    "float32": "9bd72543960e94103d2a7ec07699cca546870ff260492a8cdb5bf61685cc5503",
    "bfloat16": "26023d0341c758d1c0183ea0f8fc5c4824b7949d094c2d6719fb38b1081cd6f1",
    "int8": "d0b3dfbfedbb98603e4a2a296ca137779aaed144ab365a3d46994e853886fbde",
    "partial": "84a6ecf0c4dfb7115e5bc05f2e3261b8b6de2c23577edf4908a90cfef0ce5ecb",
}


def layer(index: int) -> object:
    """Row of token v: (v + index, -v / 2)."""
    return lambda ids: torch.stack([ids + float(index), -ids / 2], dim=1)


ROWS = {"a.0": layer(0), "a.1": layer(1)}


def golden(path: Path, dtype: str = "float16", token_ids: torch.Tensor | None = None) -> Path:
    kept = 3 if token_ids is None else len(token_ids)
    write_table(path, dataclasses.replace(HEADER, dtype=dtype, tokens=kept), ROWS, token_ids, progress=False)
    return path


def test_golden_bytes(tmp_path: Path) -> None:
    found = golden(tmp_path / "t").read_bytes()
    text = GOLDEN_HEADER + b" " * (-len(GOLDEN_HEADER) % 8)
    assert found[: 8 + len(text)] == struct.pack("<Q", len(text)) + text
    values = [0, 0, 1, 0, 1, -0.5, 2, -0.5, 2, -1, 3, -1]  # token-major: token 0 in both layers, then token 1, ...
    assert found[8 + len(text) :] == struct.pack("<12e", *values)


def test_golden_hashes(tmp_path: Path) -> None:
    found = {
        dtype: golden(tmp_path / dtype, dtype).read_bytes() for dtype in ("float16", "float32", "bfloat16", "int8")
    }
    found["partial"] = golden(tmp_path / "partial", token_ids=torch.tensor([0, 2])).read_bytes()
    assert {name: hashlib.sha256(content).hexdigest() for name, content in found.items()} == GOLDEN_SHA256


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int8"])
@pytest.mark.parametrize("token_ids", [None, torch.tensor([0, 2])])
def test_safetensors_reads_it(dtype: str, token_ids: torch.Tensor | None, tmp_path: Path) -> None:
    path = golden(tmp_path / "t", dtype, token_ids)
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format_version"] == "1"
        assert file.metadata()["layers"] == '["a.0", "a.1"]'
        rows = file.get_tensor("rows").float()
        names = set(file.keys())
        if dtype == "int8":
            rows = rows * file.get_tensor("scales").float().unsqueeze(-1)
        if token_ids is not None:
            assert torch.equal(file.get_tensor("token_ids"), token_ids.to(torch.int32))
    assert names == {"rows", *(["scales"] * (dtype == "int8")), *(["token_ids"] * (token_ids is not None))}
    kept = torch.arange(3) if token_ids is None else token_ids
    expected = torch.stack([ROWS[name](kept) for name in HEADER.layers], dim=1)
    torch.testing.assert_close(rows, expected, atol=2 / 127 / 2 * 3 if dtype == "int8" else 0, rtol=0)


@settings(max_examples=40, deadline=None)
@given(
    layers=st.lists(st.text(min_size=1, max_size=20), min_size=1, max_size=4, unique=True),
    base_model=st.text(max_size=20),
    sizes=st.tuples(st.integers(1, 6), st.integers(1, 5)),
    dtype=st.sampled_from(["float32", "float16", "bfloat16", "int8"]),
    data=st.data(),
)
def test_header_round_trip(
    tmp_path_factory: pytest.TempPathFactory,
    layers: list[str],
    base_model: str,
    sizes: tuple[int, int],
    dtype: str,
    data: st.DataObject,
) -> None:
    vocab, width = sizes
    tokens = data.draw(st.integers(1, vocab))
    header = TableHeader(tuple(layers), base_model, vocab, width, "0" * 64, dtype, tokens)
    path = tmp_path_factory.mktemp("header") / "t"
    kept = None if header.complete else torch.arange(vocab - tokens, vocab)
    rows = dict.fromkeys(layers, lambda ids: torch.ones(len(ids), width))
    write_table(path, header, rows, kept, progress=False)
    assert read_header(path) == header
    assert Table.open(path).header == header


def test_sizes() -> None:
    assert HEADER.row_bytes == 2 * 2 * 2
    assert HEADER.complete and not dataclasses.replace(HEADER, tokens=2).complete
    assert dataclasses.replace(HEADER, dtype="int8").row_bytes == 4


@pytest.mark.parametrize("dtype", ["float16", "int8"])
def test_truncated_at_every_byte(dtype: str, tmp_path: Path) -> None:
    content = golden(tmp_path / "t", dtype, torch.tensor([0, 2])).read_bytes()
    cut = tmp_path / "cut"
    for size in range(len(content)):
        cut.write_bytes(content[:size])
        with pytest.raises(ValueError, match=r"expected .*; make it again with `peft-aot fuse`, or delete it"):
            Table.open(cut)
    cut.write_bytes(content + b"\0")
    with pytest.raises(ValueError, match=rf"expected {len(content)} bytes in .*, got {len(content) + 1}"):
        Table.open(cut)


def rewritten(path: Path, change: object) -> Path:
    """A table whose header was edited, the tensors left as they are."""
    content = golden(path).read_bytes()
    length = struct.unpack("<Q", content[:8])[0]
    entries = json.loads(content[8 : 8 + length])
    text = json.dumps(change(entries) or entries).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])
    return path


def edit(*keys: str, value: object) -> object:
    def change(entries: dict[str, object]) -> None:
        for key in keys[:-1]:
            entries = entries[key]
        if value is None:
            del entries[keys[-1]]
        else:
            entries[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edit("rows", "dtype", value="BF16"), None),  # same size, so only the numbers would tell: see below
        (edit("rows", "dtype", value="F32"), "expected a readable table|expected"),
        (edit("rows", "dtype", value="F64"), "expected the layout of a table in .*rows of dtype F64"),
        (edit("rows", "shape", value=[2, 3, 2]), r"expected tensors \{'rows': \('F16', \[2, 2, 2\]\)"),
        (edit("rows", "shape", value=[3, 4]), "expected tensors"),
        (edit("rows", "shape", value="three"), "expected the layout of a table"),
        (edit("rows", "data_offsets", value=[0, 20]), r"expected \d+ bytes in .*\(truncated\?\)"),
        (edit("rows", value=None), "expected the layout of a table in .*KeyError"),
        (edit("rows", value=7), "expected the layout of a table"),
        (edit("extra", value={"dtype": "I8", "shape": [0], "data_offsets": [24, 24]}), "expected tensors"),
        (edit("__metadata__", "format_version", value="2"), "expected a table of format version 1 in .*, got 2"),
        (edit("__metadata__", value=None), "expected a table of format version 1 in .*, got None"),
        (edit("__metadata__", value=[]), "expected a safetensors header"),
        (edit("__metadata__", "layers", value='["a.0"]'), "expected tensors"),
        (edit("__metadata__", "layers", value="{"), "expected the layout of a table"),
        (edit("__metadata__", "hidden_size", value="3"), "expected tensors"),
        (edit("__metadata__", "hidden_size", value="wide"), "expected the layout of a table"),
        (edit("__metadata__", "vocab_size", value="9"), "expected tensors .*token_ids"),
        (edit("__metadata__", "factors_sha256", value=None), "expected the layout of a table in .*KeyError"),
        (lambda entries: [entries], "expected a safetensors header in .*, got none"),
    ],
)
def test_headers_that_do_not_fit(change: object, message: str | None, tmp_path: Path) -> None:
    path = rewritten(tmp_path / "t", change)
    if message is None:
        assert Table.open(path).header.dtype == "bfloat16"
        return
    with pytest.raises(ValueError, match=message) as caught:
        Table.open(path)
    assert "peft-aot fuse" in str(caught.value)


def test_files_of_other_kinds(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_header(tmp_path / "none")
    path = tmp_path / "t"
    path.write_bytes(struct.pack("<Q", 4) + b"what")
    with pytest.raises(ValueError, match="expected a safetensors header in .*, got none"):
        read_header(path)
    path.write_bytes(struct.pack("<Q", 4) + b"\xff\xfe\xfd\xfc")
    with pytest.raises(ValueError, match="expected a safetensors header"):
        read_header(path)
    save_file({"rows": torch.zeros(3, 2, 2)}, path)
    with pytest.raises(ValueError, match="expected a table of format version 1"):
        read_header(path)


def test_token_ids_outside_the_vocabulary(tmp_path: Path) -> None:
    path = golden(tmp_path / "t", token_ids=torch.tensor([0, 2]))
    content = path.read_bytes()
    for bad in (3, -1):
        path.write_bytes(content[:-4] + struct.pack("<i", bad))
        with pytest.raises(ValueError, match=r"expected token_ids in \[0, 3\) in .*make it again"):
            Table.open(path)


def test_factors_hash_sees_every_change() -> None:
    factors = {"b": torch.tensor([1.0, 2.0]), "a": torch.zeros(2, 2)}
    hashes = {
        factors_hash(factors),
        factors_hash({**factors, "b": torch.tensor([1.0, 2.0 + 1e-6])}),
        factors_hash({**factors, "b": torch.tensor([[1.0, 2.0]])}),
        factors_hash({**factors, "b": torch.tensor([1.0, 2.0], dtype=torch.float64)}),
        factors_hash({"c": factors["b"], "a": factors["a"]}),
        factors_hash({"b": factors["b"]}),
        factors_hash({**factors, "b": torch.tensor([2.0, 1.0])}),
    }
    assert len(hashes) == 7
    assert factors_hash(dict(reversed(factors.items()))) == factors_hash(factors)
    strided = torch.stack([factors["b"], factors["b"]], dim=1)[:, 0]
    assert factors_hash({**factors, "b": strided}) == factors_hash(factors)


def test_load_file_agrees(tmp_path: Path) -> None:
    assert list(load_file(golden(tmp_path / "t"))) == ["rows"]

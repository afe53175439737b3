"""Files of every format, and every way in which they can be unreadable."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from peft_aot.readers import join_tables, read_table


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def test_csv_with_quotes_line_breaks_and_a_byte_order_mark(tmp_path: Path) -> None:
    path = write(tmp_path / "f.csv", '\ufefftext,label\n"one, two",a\n\n"with\nbreak",b\n')
    table = read_table(path)
    assert table.rows == [{"text": "one, two", "label": "a"}, {"text": "with\nbreak", "label": "b"}]
    assert table.columns == ("text", "label")
    assert table.places == ("line 2", "line 5")
    assert table.where(0) == f"{path}, line 2"


def test_tsv_keeps_commas(tmp_path: Path) -> None:
    assert read_table(write(tmp_path / "f.tsv", "text\tlabel\na, b\tx\n")).rows == [{"text": "a, b", "label": "x"}]


def test_jsonl_keeps_types_and_unicode_line_separators(tmp_path: Path) -> None:
    table = read_table(
        write(tmp_path / "f.jsonl", '{"text": "a\u2028b", "label": 1}\n\n{"text": "c", "extra": null}\n')
    )
    assert table.rows == [{"text": "a\u2028b", "label": 1}, {"text": "c", "extra": None}]
    assert table.columns == ("text", "label", "extra")
    assert table.places == ("line 1", "line 3")


def test_parquet_round_trip_and_shards(tmp_path: Path) -> None:
    paths = [tmp_path / "train-00000-of-00002.parquet", tmp_path / "train-00001-of-00002.parquet"]
    for index, path in enumerate(paths):
        pyarrow.parquet.write_table(pyarrow.table({"text": [f"t{index}"], "label": [index]}), path)
    table = join_tables([read_table(path) for path in paths])
    assert table.rows == [{"text": "t0", "label": 0}, {"text": "t1", "label": 1}]
    assert table.where(1) == f"{tmp_path}, train-00001-of-00002.parquet row 0"


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl"])
def test_text_that_is_not_utf8_is_refused_with_its_line(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path / f"f.{suffix}", b"text,label\nfine,a\ncaf\xe9,b\n")
    with pytest.raises(ValueError, match=rf"expected UTF-8 text in .*f\.{suffix}, got byte 0xe9 in line 3; convert it"):
        read_table(path)


def test_parquet_text_that_is_not_utf8_is_refused_with_its_row(tmp_path: Path) -> None:
    raw = pyarrow.array([b"fine", b"caf\xe9"], pyarrow.binary())
    text = pyarrow.Array.from_buffers(pyarrow.string(), 2, raw.buffers())
    path = tmp_path / "f.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"label": ["a", "b"], "text": text}), path)
    with pytest.raises(ValueError, match=r"expected UTF-8 text in .*, got other bytes in column 'text', row 1; decode"):
        read_table(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "f.csv",
            "text,label\na,b,c\n",
            r"expected 2 columns in .*f\.csv, got 3 in line 2; quote values that hold a ','",
        ),
        ("f.csv", 'text,label\n"open,a\n', r"expected well-formed CSV in .*, got .* in line 2; repair the quotes"),
        (
            "f.jsonl",
            '{"a": 1}\n{"a": \n',
            r"expected one JSON object per line in .*, got .* in line 2; repair the line",
        ),
        ("f.jsonl", "[1, 2]\n", r"expected one JSON object per line in .*, got a list in line 1; write it as"),
        ("f.parquet", "no parquet", r"expected a parquet file in .*f\.parquet, got .*; write it again"),
        ("f.xlsx", "", r"expected a \.csv, \.tsv, \.jsonl, \.json, \.parquet file, got .*f\.xlsx; convert it"),
    ],
)
def test_malformed_files_are_refused(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_table(write(tmp_path / name, content))


def test_a_file_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"expected a data file, got .*none\.csv, which does not exist; check"):
        read_table(tmp_path / "none.csv")

"""Rows out of a local CSV, TSV, JSONL or parquet file, each with the place to name in an error message.

Knows nothing of tasks. Everything unreadable is refused here with the file and the line or row.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow  # type: ignore[import-untyped]
import pyarrow.parquet  # type: ignore[import-untyped]


@dataclass(frozen=True)
class Table:
    """Rows and where they came from.

    Attributes:
        rows: Column name -> value.
        columns: Column names.
        origin: File, folder or hub id, for messages.
        places: Place of each row in `origin`, such as "line 7" or "row 7" (rows are counted from 0).
        partial: Whether the source says that official rows are missing.
    """

    rows: list[dict[str, Any]]
    columns: tuple[str, ...]
    origin: str
    places: tuple[str, ...]
    partial: bool = False

    def where(self, index: int) -> str:
        """Name the file and the place of one row."""
        return f"{self.origin}, {self.places[index]}"


def _read_text(path: Path) -> str:
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"expected UTF-8 text in {path}, got byte 0x{content[error.start]:02x} in line {line}; "
            f"convert it first, for example with `iconv -f latin1 -t utf-8`"
        ) from error


def _read_delimited(path: Path, delimiter: str) -> Table:
    reader = csv.reader(io.StringIO(_read_text(path), newline=""), delimiter=delimiter, strict=True)
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    try:
        header = next(reader, [])
        for values in reader:
            if not values:
                continue
            if len(values) != len(header):
                raise ValueError(
                    f"expected {len(header)} columns in {path}, got {len(values)} in line {reader.line_num}; "
                    f"quote values that hold a {delimiter!r}"
                )
            rows.append(dict(zip(header, values, strict=True)))
            places.append(f"line {reader.line_num}")
    except csv.Error as error:
        raise ValueError(
            f"expected well-formed CSV in {path}, got {error} in line {reader.line_num}; repair the quotes"
        ) from error
    return Table(rows, tuple(header), str(path), tuple(places))


def _read_jsonl(path: Path) -> Table:
    rows: list[dict[str, Any]] = []
    places: list[str] = []
    columns: dict[str, None] = {}
    # Not splitlines(): it also cuts at U+2028 and other characters that are legal inside a JSON string.
    for number, line in enumerate(_read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(
                f"expected one JSON object per line in {path}, got {error.msg} in line {number}; repair the line"
            ) from error
        if not isinstance(row, dict):
            raise ValueError(
                f"expected one JSON object per line in {path}, got a {type(row).__name__} in line {number}; "
                'write it as {"column": value}'
            )
        rows.append(row)
        places.append(f"line {number}")
        columns.update(dict.fromkeys(row))
    return Table(rows, tuple(columns), str(path), tuple(places))


def _bad_utf8_row(table: pyarrow.Table) -> tuple[str, int] | None:
    for name in table.column_names:
        if not (pyarrow.types.is_string(table[name].type) or pyarrow.types.is_large_string(table[name].type)):
            continue
        for index, scalar in enumerate(table[name].cast(pyarrow.large_binary())):
            try:
                (scalar.as_py() or b"").decode("utf-8")
            except UnicodeDecodeError:
                return name, index
    return None


def _read_parquet(path: Path) -> Table:
    try:
        table = pyarrow.parquet.read_table(path)
    except pyarrow.ArrowException as error:
        raise ValueError(f"expected a parquet file in {path}, got {error}; write it again") from error
    try:
        rows = table.to_pylist()
    except UnicodeDecodeError as error:
        column, row = _bad_utf8_row(table) or ("?", 0)
        raise ValueError(
            f"expected UTF-8 text in {path}, got other bytes in column {column!r}, row {row}; "
            "decode the column and write the file again"
        ) from error
    return Table(rows, tuple(table.column_names), str(path), tuple(f"row {index}" for index in range(len(rows))))


_READERS: dict[str, Callable[[Path], Table]] = {
    ".csv": lambda path: _read_delimited(path, ","),
    ".tsv": lambda path: _read_delimited(path, "\t"),
    ".jsonl": _read_jsonl,
    ".json": _read_jsonl,
    ".parquet": _read_parquet,
}


def read_table(path: Path) -> Table:
    """Read a file by its suffix: .csv, .tsv, .jsonl (or .json with one object per line), .parquet.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The suffix is unknown, the text is not UTF-8, or the content is malformed.
    """
    if path.suffix.lower() not in _READERS:
        raise ValueError(f"expected a {', '.join(_READERS)} file, got {path}; convert it to one of them")
    if not path.is_file():
        raise FileNotFoundError(f"expected a data file, got {path}, which does not exist; check the path")
    return _READERS[path.suffix.lower()](path)


def join_tables(tables: list[Table]) -> Table:
    """Put the shards of one split together."""
    if len(tables) == 1:
        return tables[0]
    return Table(
        [row for table in tables for row in table.rows],
        tables[0].columns,
        str(Path(tables[0].origin).parent),
        tuple(f"{Path(table.origin).name} {place}" for table in tables for place in table.places),
    )

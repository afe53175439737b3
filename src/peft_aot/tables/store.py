"""Reading a fused table: mapped into memory, a row touched only when it is asked for, and only if it is as it was."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from .format import TableHeader, read_header, rows_start
from .mapped import MappedFile
from .read_ahead import ReadAhead

ALL = slice(None)


class TableChanged(ValueError):
    """The file of a table was written to while it was in use: its rows are not to be trusted any more."""


class Table:
    """A fused table on disk, memory-mapped.

    Attributes:
        path: The file.
        header: What the table says of itself.
    """

    def __init__(self, path: Path, header: TableHeader, tensors: dict[str, Tensor], file: MappedFile) -> None:
        self.path = path
        self.header = header
        self._file = file
        self._rows = tensors["rows"]
        self._scales = tensors.get("scales")
        self._slot_of_token: Tensor | None = None
        kept = tensors.get("token_ids")
        if kept is not None:
            if int(kept.min()) < 0 or int(kept.max()) >= header.vocab_size:
                raise ValueError(
                    f"expected token_ids in [0, {header.vocab_size}) in {path}, got {int(kept.min())} to "
                    f"{int(kept.max())}; make it again with `peft-aot fuse`"
                )
            self._slot_of_token = torch.full((header.vocab_size,), -1)
            self._slot_of_token[kept.long()] = torch.arange(header.tokens)
        self._slot_of_layer = {name: slot for slot, name in enumerate(header.layers)}
        self._read_ahead = ReadAhead(path, rows_start(path), header.tokens, header.row_bytes)
        self._slots_of_layers: dict[tuple[str, ...], slice | None] = {}

    @classmethod
    def open(cls, path: str | Path, factors_sha256: str | None = None, names: Mapping[str, str] | None = None) -> Table:
        """Map a table.

        Args:
            path: The file.
            factors_sha256: If given, the hash of the factors that the rows must have been computed from.
            names: What to call blocks that have another name in the file.

        Raises:
            FileNotFoundError: No such file.
            ValueError: Truncated, of another dtype or layout than it says, stale (other factors), or replaced while it
                is being opened.
        """
        path = Path(path)
        mapped = MappedFile(path)
        header = read_header(path)
        if names is not None:
            header = dataclasses.replace(header, layers=tuple(names.get(name, name) for name in header.layers))
        if factors_sha256 is not None and header.factors_sha256 != factors_sha256:
            raise ValueError(
                f"expected a table of factors {factors_sha256[:12]}, got {path} of factors "
                f"{header.factors_sha256[:12]} (stale); make it again with `peft-aot fuse`"
            )
        try:
            with safe_open(path, framework="pt") as file:
                table = cls(path, header, {name: file.get_tensor(name) for name in header.layout()}, mapped)
        except SafetensorError as error:
            raise ValueError(
                f"expected a readable table, got {path}: {error}; make it again with `peft-aot fuse`"
            ) from error
        if not mapped.present:  # the header of one file and the rows of another
            raise ValueError(
                f"expected a table that stays as it is while it is opened, got {path} replaced or changed meanwhile; "
                f"open it again"
            )
        return table

    def __deepcopy__(self, memo: object) -> Table:
        return self  # read-only: copies of a model share the mapping

    def __reduce__(self) -> tuple[Callable[..., Table | None], tuple[Path, str, tuple[str, ...]]]:
        return _reopened, (
            self.path,
            self.header.factors_sha256,
            self.header.layers,
        )  # names the file, without its gigabytes of rows

    def layer_slot(self, name: str) -> int | None:
        """Return where a block stands on the layer axis, or None if the table has no rows for it."""
        return self._slot_of_layer.get(name)

    def layer_slots(self, names: tuple[str, ...]) -> slice | None:
        """Return where blocks stand on the layer axis, or None if not side by side in this order."""
        if names not in self._slots_of_layers:
            first = self._slot_of_layer.get(names[0], 0)
            slots = slice(first, first + len(names))
            self._slots_of_layers[names] = slots if self.header.layers[slots] == names else None
        return self._slots_of_layers[names]

    def missing(self, token_ids: Tensor) -> Tensor | None:
        """Return a mask (U,) of the tokens that the table does not keep, or None if it keeps the whole vocabulary."""
        return None if self._slot_of_token is None else self._slot_of_token[token_ids.cpu()] < 0

    def rows(self, token_ids: Tensor, layers: slice = ALL) -> Tensor:
        """Read the rows of tokens, all layers at once.

        Args:
            token_ids: (U,) int64 on any device; those that the table does not keep get some other token's rows.
            layers: Which of its layers.

        Returns:
            (U, L, D) on the CPU in the table's dtype, or float32 for int8 tables.

        Raises:
            TableChanged: The file was written to or truncated since it was mapped. Not noticed under `torch.compile`,
                whose graphs cannot look.
        """
        ids = token_ids.cpu()
        slots = ids if self._slot_of_token is None else self._slot_of_token[ids].clamp_min(0)
        if torch.compiler.is_compiling():  # which rows are new is no matter for a graph either
            return self._read(slots, layers)
        self._refuse_changed()  # a truncated file has no rows to touch
        self._read_ahead.announce(slots)
        rows = self._read(slots, layers)
        self._refuse_changed()  # while they were read
        return rows

    def _refuse_changed(self) -> None:
        if self._file.changed:
            raise TableChanged(
                f"expected the table {self.path} as it was mapped, got it written to in place since; load the adapter "
                f"again, and replace tables by renaming, as `peft-aot fuse` does"
            )

    def stored(self, token_ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Read the rows of tokens (U,) as they are stored: (U, L, D) and, of int8 tables, the scales (U, L).

        Raises:
            TableChanged: As in `rows`.
        """
        slots = token_ids if self._slot_of_token is None else self._slot_of_token[token_ids].clamp_min(0)
        self._refuse_changed()
        self._read_ahead.announce(slots)
        rows = self._rows.index_select(0, slots)
        scales = None if self._scales is None else self._scales.index_select(0, slots)
        self._refuse_changed()
        return rows, scales

    def _read(self, slots: Tensor, layers: slice) -> Tensor:
        rows = self._rows[:, layers].index_select(0, slots)
        if self._scales is None:
            return rows
        return rows.float() * self._scales[:, layers].index_select(0, slots).float().unsqueeze(-1)


def _reopened(path: Path, factors_sha256: str, layers: tuple[str, ...]) -> Table | None:
    """Map the table of a model that was pickled, if it is still there: without it the factors are used."""
    try:
        return Table.open(path, factors_sha256, dict(zip(read_header(path).layers, layers, strict=True)))
    except (OSError, ValueError) as error:
        warnings.warn(f"{error}. Until then the factors are used.", stacklevel=2)
        return None

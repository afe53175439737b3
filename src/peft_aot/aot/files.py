"""The table of a saved adapter: fused beside its factors when it is saved, found and checked when it is loaded.

Called by `AoTModel`; how an adapter itself is saved and loaded stands in `peft_aot.files`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from peft.utils import SAFETENSORS_WEIGHTS_NAME
from torch import nn

from peft_aot import fusion
from peft_aot.source import Source
from peft_aot.tables import TABLE_FILE, Table
from peft_aot.tables.format import factors_hash
from peft_aot.tables.fuse import NO_ROOM

from .config import AoTConfig
from .stack_rows import StackRows
from .stacked import StackedFactors
from .verify import check_table


def save_table(folder: Path, backbone: nn.Module) -> bool:
    """Fuse the adapter whose factors have just been written into a folder.

    Returns:
        Whether it could be: without its table an adapter is still worth saving, so that a warning says why not.
    """
    try:
        fusion.fuse(folder, backbone)
    except (ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in NO_ROOM:
            raise
        warnings.warn(f"{error}. The adapter is saved without its table.", stacklevel=6)
        return False
    return True


def find_table(
    source: Source,
    config: AoTConfig,
    stacks: Sequence[StackRows],
    factors_for: Callable[[StackRows], StackedFactors],
    names: Mapping[str, str] | None = None,
) -> Table | None:
    """Return the table beside an adapter whose factors were just loaded, if it is right.

    A table that is damaged, unreadable, stale or of another backbone is left alone with a warning: the factors give
    right rows.

    Args:
        source: Where the adapter was loaded from.
        config: Its configuration.
        stacks: The stacks of the backbone.
        factors_for: Gives the adapter's factors in one of them.
        names: What the blocks it was trained on are called in this backbone, where that differs.
    """
    if not config.inference_mode:
        return None  # about to be trained: rows would be stale at once
    if config.bottleneck_input == "hidden":
        return None  # no lookup: whatever table lies there is another adapter's
    path, weights = source.file(TABLE_FILE), source.file(SAFETENSORS_WEIGHTS_NAME)
    if path is None or weights is None:
        return None
    try:
        factors = fusion.read_factors(weights)
        expected = factors_hash({f"{block}.{factor}": tensor for (block, factor), tensor in factors.items()})
        table = Table.open(path, factors_sha256=expected, names=names)
        check_table(table, config, stacks, factors_for)
    except ValueError as error:
        warnings.warn(f"{error}. Until then the factors are used.", stacklevel=6)
        return None
    except OSError as error:  # not ours to read, or gone since it was found
        warnings.warn(
            f"expected a table that can be read, got {error}; make it readable and load the adapter again. Until then "
            f"the factors are used.",
            stacklevel=6,
        )
        return None
    return table

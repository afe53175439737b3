"""`peft-aot fuse`: a progress bar and a report. The work is `peft_aot.fusion`'s."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from peft_aot.cli.info import print_lines
from peft_aot.cli.quiet import quiet_libraries
from peft_aot.fusion import fuse as fuse_adapter
from peft_aot.sizes import format_bytes


def fuse(
    directory: Annotated[Path, typer.Argument(help="Folder of a trained AoT adapter.")],
    base_model: Annotated[
        str | None, typer.Option(help="Hub id or local path of the backbone, if it is not where the adapter says.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, float16, bfloat16 or int8; else what the adapter says.")
    ] = None,
) -> None:
    """Write the lookup table of a trained AoT adapter."""
    quiet_libraries()
    report = fuse_adapter(directory, base_model, dtype=dtype)
    print_lines(
        [
            ("table", str(report.path)),
            ("size", format_bytes(report.bytes)),
            ("dtype", report.header.dtype),
            ("tokens", f"{report.header.tokens:,} of {report.header.vocab_size:,}"),
            ("max row difference", f"{report.max_row_difference:.2g} from the factors"),
            ("sampled tokens", f"{report.sampled:,}"),
        ]
    )

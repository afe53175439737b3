"""The report of a comparison as files in a folder, each of which is the old one or the new one, never half of one."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from peft_aot.compare.summary import Summary

from .figures import draw_pictures, plots_available
from .latex import latex
from .markdown import markdown
from .numbers import numbers_csv
from .page import render_page


def write_report(summary: Summary, folder: Path) -> tuple[Path, ...]:
    """Write tables, page and pictures of a comparison, finished or not.

    Without matplotlib there are no pictures, and the page says how to get them.

    Args:
        summary: The comparison.
        folder: Folder that receives the files; created if needed.

    Returns:
        The files: table.md, table.tex, table.csv, report.html; evp, bytes and ratio as .png and .svg.
    """
    pictures = draw_pictures(summary) if plots_available() else ()
    contents = {
        "table.md": markdown(summary).encode(),
        "table.tex": latex(summary).encode(),
        "table.csv": numbers_csv(summary).encode(),
        "report.html": render_page(summary, pictures).encode(),
    }
    for picture in pictures:
        contents[f"{picture.name}.png"] = picture.png
        contents[f"{picture.name}.svg"] = picture.svg.encode()
    folder.mkdir(parents=True, exist_ok=True)
    return tuple(_replace(folder / name, content) for name, content in contents.items())


def _replace(path: Path, content: bytes) -> Path:
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.chmod(temporary, 0o644)  # mkstemp makes it private; a report is meant to be shown
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise
    return path

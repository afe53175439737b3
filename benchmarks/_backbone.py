"""The backbone that benchmarks run on, under a name that says what it is and holds no path of this machine."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from peft_aot.demo.carriers import locate_backbone

NAME = "all-MiniLM-L6-v2"


@contextmanager
def named_backbone() -> Iterator[str]:
    """Copy MiniLM-L6 to a temporary folder, go there, and yield its name, which records then show."""
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(locate_backbone(), Path(folder) / NAME)
        os.chdir(folder)
        try:
            yield NAME
        finally:
            os.chdir(before)

"""Where adapters may come from: allowed folders, allowed hub ids, nowhere else.

An adapter that is refused for where it is, and one that is not there, are told apart in no answer: nobody learns what
files this machine has.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from peft_aot.loading import ADAPTER_CONFIG

from .problems import Problem

WEIGHTS = "adapter_model.safetensors"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)
PATTERN = re.compile(r"[A-Za-z0-9][\w.-]*/(\*|[A-Za-z0-9][\w.-]*)", re.ASCII)


class Adapters:
    """What may be loaded.

    Args:
        folders: Adapters may be anywhere below these.
        hub: Hub ids: "org/name", or "org/*" for all of an organization.

    Raises:
        ValueError: An entry of `hub` is neither.
    """

    def __init__(self, folders: Sequence[Path], hub: Sequence[str]) -> None:
        for entry in hub:
            if not PATTERN.fullmatch(entry):
                raise ValueError(f"expected a hub id as org/name or org/*, got {entry!r}; write one of these")
        self._folders = [folder.resolve() for folder in folders]
        self._hub = frozenset(hub)

    def find(self, wanted: str) -> Path | str:
        """Return the folder or the hub id that a caller means.

        Args:
            wanted: A hub id, or a path: absolute or as seen from an allowed folder.

        Raises:
            Problem: It may not be loaded, or is no complete adapter.
        """
        for root in self._folders:
            folder = _inside(root, wanted)
            if folder is not None:
                problem = incomplete(folder, root)
                if problem is not None:
                    raise Problem(422, "bad_adapter", problem)
                return folder
        # a folder that happens to have the id's name, seen from where the server runs, would be read in its place
        if HUB_ID.fullmatch(wanted) and not os.path.exists(wanted):
            organization = wanted.partition("/")[0]
            if wanted in self._hub or f"{organization}/*" in self._hub:
                return wanted
        raise Problem(
            403,
            "forbidden",
            "expected a folder inside an allowed one or an allowed hub id, got neither; put the adapter into a folder "
            "that the server was started with, or start it with --allow-hub",
        )


def incomplete(folder: Path, root: Path) -> str | None:
    """Say what keeps a folder from being an adapter that is safe to read, if anything does.

    Args:
        folder: The adapter's folder.
        root: What none of its files may be outside of.
    """
    for name in (ADAPTER_CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            return f"expected {name} in the adapter's folder, got none; save the adapter as safetensors"
    root = root.resolve()
    for place, folders, files in os.walk(folder):
        for path in (Path(place), *(Path(place, name) for name in (*folders, *files))):
            if path.is_symlink() and _inside(root, str(path.absolute())) is None:
                return f"expected files inside the allowed folder, got a link out of it, {path.name!r}; copy instead"
    return None


def _inside(root: Path, wanted: str) -> Path | None:
    """Return what a path leads to, links followed, if that is there and below `root`."""
    try:
        found = (root / wanted).resolve(strict=True)
    except (OSError, ValueError, RuntimeError):  # not there, a NUL, a ring of links
        return None
    return found if found != root and found.is_relative_to(root) else None

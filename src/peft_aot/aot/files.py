"""An AoT adapter as files: saved as one, its table written beside the factors and found again, pushed to the hub.

Called in place of `PeftModel`'s own methods (see `_registration`); other methods' adapters never come here.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from peft import PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME

from peft_aot import fusion
from peft_aot.card import complete_card
from peft_aot.staging import finish, staged
from peft_aot.tables import TABLE_FILE, Table
from peft_aot.tables.format import factors_hash

from .model import AoTModel, as_aot

CARD_FILE = "README.md"
HUB_ARGUMENTS = ("subfolder", "revision", "cache_dir", "token", "local_files_only", "force_download", "proxies")


def save_adapters(
    model: PeftModel,
    save: Callable[..., None],
    save_directory: str | Path,
    *,
    fuse: bool | None = None,
    selected_adapters: list[str] | None = None,
    is_main_process: bool = True,
    safe_serialization: bool = True,
    **kwargs: Any,
) -> None:
    """Save adapters as `PeftModel.save_pretrained` does, each all or nothing, with its table where wanted.

    Args:
        model: The model whose adapters to save.
        save: The original `save_pretrained`, bound to the model.
        save_directory: Where to; an adapter not named "default" gets a folder below, as always in PEFT.
        fuse: Whether to write tables; by default each adapter's `fuse_on_save`.
        selected_adapters: Names of the adapters, by default all.
        is_main_process: False writes nothing.
        safe_serialization: Must be true for adapters with a table.
        kwargs: Passed on.
    """
    kwargs.update(
        selected_adapters=selected_adapters, is_main_process=is_main_process, safe_serialization=safe_serialization
    )
    target = Path(save_directory)
    names = list(model.peft_config) if selected_adapters is None else selected_adapters
    if not is_main_process or target.is_file() or any(name not in model.peft_config for name in names):
        save(str(save_directory), **kwargs)  # nothing to write, or PEFT's own refusal
        return
    with tempfile.TemporaryDirectory(prefix=".peft_aot_", dir=_existing_parent(target)) as scratch:
        if (target / CARD_FILE).is_file():
            shutil.copy(target / CARD_FILE, scratch)  # PEFT updates the card that is there
        save(scratch, **kwargs)
        for name in names:
            source = Path(scratch) if name == "default" else Path(scratch) / name
            destination = target if name == "default" else target / name
            with staged(destination, fusion.CONFIG_FILE, remove=[TABLE_FILE]) as folder:
                for path in source.iterdir():
                    if path.is_file() and path.name != CARD_FILE:
                        shutil.move(path, folder)
                config = as_aot(model.peft_config[name])
                wanted = config.fuse_on_save if fuse is None else fuse
                if wanted:
                    fusion.fuse(folder, model.get_base_model())
                card = Path(scratch) / CARD_FILE
                complete_card(card, folder / CARD_FILE, name, config, fused=wanted)


def load_table(model: PeftModel, model_id: str | Path, adapter_name: str, **kwargs: Any) -> None:
    """Find the table of an adapter that was just loaded, check it and use it in inference.

    A table that is damaged, stale or of another backbone is left alone with a warning: the factors give right rows.

    Args:
        model: The model that `load_adapter` has loaded the adapter into.
        model_id: The folder or hub id it came from.
        adapter_name: Its name in the model.
        kwargs: The hub's arguments, such as `subfolder`, `revision` and `token`.
    """
    tuner = model.base_model
    if not isinstance(tuner, AoTModel):
        raise TypeError(f"expected a model with AoT adapters, got {type(tuner).__name__}; only AoT has tables")
    tuner.lookup.detach(adapter_name)
    config = as_aot(model.peft_config[adapter_name])
    if not config.inference_mode:
        return  # about to be trained: rows would be stale at once
    hub = {name: value for name, value in kwargs.items() if name in HUB_ARGUMENTS}
    path = adapter_file(model_id, TABLE_FILE, **hub)
    weights = adapter_file(model_id, SAFETENSORS_WEIGHTS_NAME, **hub)
    if path is None or weights is None:
        return
    try:
        factors = fusion.read_factors(weights)
        expected = factors_hash({f"{block}.{factor}": tensor for (block, factor), tensor in factors.items()})
        table = Table.open(path, factors_sha256=expected)
        if (table.header.vocab_size, table.header.hidden_size) != (config.vocab_size, config.token_dim):
            raise ValueError(
                f"expected a table for vocabulary {config.vocab_size} and width {config.token_dim}, got {path} for "
                f"{table.header.vocab_size} and {table.header.hidden_size}; make it again with `peft-aot fuse`"
            )
    except ValueError as error:
        warnings.warn(f"{error}. Until then the factors are used.", stacklevel=3)
        return
    tuner.lookup.attach(adapter_name, table)


def adapter_file(model_id: str | Path, name: str, subfolder: str | None = None, **hub: Any) -> Path | None:
    """Return the path of an adapter's file, local or downloaded from the hub, or None if it has no such file."""
    local = Path(model_id, subfolder) if subfolder else Path(model_id)
    if local.is_dir():
        return local / name if (local / name).is_file() else None
    try:
        return Path(huggingface_hub.hf_hub_download(str(model_id), name, subfolder=subfolder, **hub))
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError, HfHubHTTPError):
        return None


def finish_save(model_id: str | Path, subfolder: str | None = None) -> None:
    """Complete or discard a save into a local folder that was interrupted."""
    local = Path(model_id, subfolder) if subfolder else Path(model_id)
    if local.is_dir():
        finish(local, fusion.CONFIG_FILE)


def push_adapters(
    model: PeftModel,
    repo_id: str,
    *,
    fuse: bool | None = None,
    commit_message: str = "Upload AoT adapter",
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    tags: list[str] | None = None,
    **kwargs: Any,
) -> str:
    """Save to a scratch folder and upload it, table included or left out.

    Args:
        model: The model whose adapters to push.
        repo_id: `user/name` on the hub; created if needed.
        fuse: Whether to include tables; by default each adapter's `fuse_on_save`.
        commit_message: Of the upload.
        private: Whether a new repository is private.
        token: To authenticate with; by default the one stored by `hf auth login`.
        revision: Branch to upload to.
        create_pr: Open a pull request instead of committing.
        tags: More tags for the model card.
        kwargs: Passed on to `save_pretrained`.

    Returns:
        The address of the commit.
    """
    repo_id = huggingface_hub.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    kwargs.pop("max_shard_size", None)
    with tempfile.TemporaryDirectory() as scratch:
        existing = adapter_file(repo_id, CARD_FILE, token=token, revision=revision)
        if existing is not None:
            shutil.copy(existing, scratch)
        model.save_pretrained(scratch, fuse=fuse, **kwargs)
        if tags:
            for path in Path(scratch).rglob(CARD_FILE):
                card = ModelCard.load(path)
                card.data.tags = sorted({*(card.data.tags or []), *tags})
                card.save(path)
        commit = huggingface_hub.upload_folder(
            repo_id=repo_id,
            folder_path=scratch,
            commit_message=commit_message,
            token=token,
            revision=revision,
            create_pr=create_pr,
        )
    return str(commit)


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path

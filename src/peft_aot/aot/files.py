"""An AoT adapter as files: saved as one, its table written beside the factors and found again, pushed to the hub.

Called in place of `PeftModel`'s own methods (see `_registration`); other methods' adapters never come here.
"""

from __future__ import annotations

import contextlib
import inspect
import shutil
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import ModelCard
from huggingface_hub.errors import EntryNotFoundError, HfHubHTTPError, HFValidationError, RepositoryNotFoundError
from peft import PeftConfig, PeftModel
from peft.utils import SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

from peft_aot import fusion
from peft_aot.card import TASK_FILE, complete_card, describe, read_task
from peft_aot.staging import finish, staged
from peft_aot.tables import TABLE_FILE, Table
from peft_aot.tables.format import factors_hash

from .config import AoTConfig
from .model import AoTModel, as_aot
from .verify import check_same_rows, check_table

CARD_FILE = "README.md"
REPLACED = (TABLE_FILE, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)
HUB_ARGUMENTS = frozenset(inspect.signature(huggingface_hub.hf_hub_download).parameters) - {"repo_id", "filename"}


@dataclass(frozen=True)
class Source:
    """Where an adapter was loaded from or saved to, as long as its factors are still those.

    Attributes:
        model_id: Folder or hub id.
        hub: Arguments of the hub, such as `subfolder` and `revision`.
        versions: From `Lookup.factor_versions`.
    """

    model_id: str | Path
    hub: dict[str, Any]
    versions: tuple[int, ...]


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

    Raises:
        ValueError: A table is wanted beside factors that are not to be saved as safetensors.
    """
    kwargs.update(
        selected_adapters=selected_adapters, is_main_process=is_main_process, safe_serialization=safe_serialization
    )
    target = Path(save_directory)
    names = list(model.peft_config) if selected_adapters is None else selected_adapters
    if not is_main_process or target.is_file() or any(name not in model.peft_config for name in names):
        save(str(save_directory), **kwargs)  # nothing to write, or PEFT's own refusal
        return
    configs = {name: as_aot(model.peft_config[name]) for name in names}
    wanted = {name: config.fuse_on_save if fuse is None else fuse for name, config in configs.items()}
    if any(wanted.values()) and not safe_serialization:
        raise ValueError(
            "expected safe_serialization=True for an adapter saved with its table, got False; leave it out, or pass "
            "fuse=False"
        )
    sections = []
    with tempfile.TemporaryDirectory(prefix=".peft_aot_", dir=_existing_parent(target)) as directory:
        scratch = Path(directory)
        if (target / CARD_FILE).is_file():
            shutil.copy(target / CARD_FILE, scratch)  # PEFT updates the card that is there
        save(str(scratch), **kwargs)
        for name, config in configs.items():
            subfolder = None if name == "default" else name
            source, destination = scratch / (subfolder or ""), target / (subfolder or "")
            with staged(destination, fusion.CONFIG_FILE, REPLACED) as folder:
                for path in source.iterdir():
                    if path.is_file() and path.name != CARD_FILE:
                        shutil.move(path, folder)
                fused = wanted[name] and _fuse(folder, model)
                task = read_task(destination)
                card = destination / CARD_FILE if subfolder and (destination / CARD_FILE).is_file() else None
                complete_card(card or scratch / CARD_FILE, folder / CARD_FILE, [describe(name, config, fused, task)])
            sections.append(describe(name, config, fused, task, subfolder))
            _remember(model, name, destination, {})
        if "default" not in names:
            complete_card(scratch / CARD_FILE, scratch / CARD_FILE, sections)
            with contextlib.suppress(OSError):
                shutil.move(scratch / CARD_FILE, target / CARD_FILE)


def _fuse(folder: Path, model: PeftModel) -> bool:
    try:
        fusion.fuse(folder, model.get_base_model())
    except ValueError as error:  # a table is a cache: what was trained is worth saving without it
        warnings.warn(f"{error}. The adapter is saved without its table.", stacklevel=4)
        return False
    return True


def _remember(model: PeftModel, adapter_name: str, model_id: str | Path, hub: dict[str, Any]) -> None:
    tuner = _tuner(model)
    tuner.sources[adapter_name] = Source(model_id, hub, tuner.lookup.factor_versions(adapter_name))


def _tuner(model: PeftModel) -> AoTModel:
    tuner = model.base_model
    if not isinstance(tuner, AoTModel):
        raise TypeError(f"expected a model with AoT adapters, got {type(tuner).__name__}; only AoT has tables")
    return tuner


def adapter_loaded(
    model: PeftModel, model_id: str | Path, adapter_name: str, use_table: bool = True, **kwargs: Any
) -> None:
    """Take note of an adapter that was just loaded, and use its table if it has one.

    Args:
        model: The model that `load_adapter` has loaded the adapter into.
        model_id: The folder or hub id it came from.
        adapter_name: Its name in the model.
        use_table: False computes rows from the factors even if there is a table.
        kwargs: The other arguments of `load_adapter`.
    """
    hub = {name: value for name, value in kwargs.items() if name in HUB_ARGUMENTS}
    _tuner(model).lookup.detach(adapter_name)
    _remember(model, adapter_name, model_id, hub)
    if use_table:
        load_table(model, model_id, adapter_name, **hub)


def load_table(model: PeftModel, model_id: str | Path, adapter_name: str, **hub: Any) -> None:
    """Find the table of an adapter whose factors were just loaded, check it and use it in inference.

    A table that is damaged, stale or of another backbone is left alone with a warning: the factors give right rows.

    Args:
        model: The model that `load_adapter` has loaded the adapter into.
        model_id: The folder or hub id it came from.
        adapter_name: Its name in the model.
        hub: The hub's arguments, such as `subfolder`, `revision` and `token`.
    """
    tuner = _tuner(model)
    config = as_aot(model.peft_config[adapter_name])
    if not config.inference_mode:
        return  # about to be trained: rows would be stale at once
    path = adapter_file(model_id, TABLE_FILE, **hub)
    weights = adapter_file(model_id, SAFETENSORS_WEIGHTS_NAME, **hub)
    if path is None or weights is None:
        return
    try:
        factors = fusion.read_factors(weights)
        expected = factors_hash({f"{block}.{factor}": tensor for (block, factor), tensor in factors.items()})
        table = Table.open(path, factors_sha256=expected)
        check_table(table, model.get_base_model(), adapter_name, config)
    except ValueError as error:
        warnings.warn(f"{error}. Until then the factors are used.", stacklevel=4)
        return
    tuner.lookup.attach(adapter_name, table)


def adapter_file(model_id: str | Path, name: str, subfolder: str | None = None, **hub: Any) -> Path | None:
    """Return the path of an adapter's file, local or downloaded from the hub, or None if it has no such file."""
    local = Path(model_id, subfolder) if subfolder else Path(model_id)
    if local.is_dir():
        return local / name if (local / name).is_file() else None
    try:
        return Path(huggingface_hub.hf_hub_download(str(model_id), name, subfolder=subfolder, **hub))
    except (EntryNotFoundError, RepositoryNotFoundError, HFValidationError):
        return None
    except HfHubHTTPError as error:
        warnings.warn(f"could not download {name} of {model_id} ({error}). It is left out.", stacklevel=5)
        return None


def before_loading(model: PeftModel, model_id: str | Path, adapter_name: str, **kwargs: Any) -> None:
    """Complete an interrupted save, and refuse weights that do not fit an adapter of the same name.

    Args:
        model: The model that `load_adapter` is about to load the adapter into.
        model_id: The folder or hub id it comes from.
        adapter_name: Its name in the model.
        kwargs: The other arguments of `load_adapter`.
    """
    local = Path(model_id, kwargs.get("subfolder") or "")
    if local.is_dir():
        finish(local, fusion.CONFIG_FILE)
    if adapter_name in model.peft_config:
        hub = {name: value for name, value in kwargs.items() if name in HUB_ARGUMENTS}
        try:
            loaded = PeftConfig.from_pretrained(str(model_id), **hub)
        except ValueError:
            return  # no configuration there: PEFT only needs the weights of an adapter it knows
        if isinstance(loaded, AoTConfig):
            check_same_rows(loaded, as_aot(model.peft_config[adapter_name]), adapter_name)


def push_adapters(
    model: PeftModel,
    repo_id: str,
    *,
    fuse: bool | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str | None = None,
    tags: list[str] | None = None,
    **kwargs: Any,
) -> huggingface_hub.CommitInfo:
    """Save to a scratch folder and upload it, table included or left out.

    The `task.json` of an adapter that is as it was loaded or saved goes along, for its scores.

    Args:
        model: The model whose adapters to push.
        repo_id: `user/name` on the hub; created if needed.
        fuse: Whether to include tables; by default each adapter's `fuse_on_save`.
        commit_message: Of the upload.
        commit_description: Of the upload.
        private: Whether a new repository is private.
        token: To authenticate with; by default the one stored by `hf auth login`.
        revision: Branch to upload to; created if needed.
        create_pr: Open a pull request instead of committing.
        max_shard_size: Ignored: adapters are not sharded.
        tags: More tags for the model card.
        kwargs: Passed on to `save_pretrained`.

    Returns:
        The commit, a str that is its address.
    """
    repo_id = huggingface_hub.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        huggingface_hub.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
    names = kwargs.get("selected_adapters") or list(model.peft_config)
    with tempfile.TemporaryDirectory() as scratch:
        existing = adapter_file(repo_id, CARD_FILE, token=token, revision=revision)
        if existing is not None:
            shutil.copy(existing, scratch)
        folders = {name: Path(scratch, "" if name == "default" else name) for name in names}
        for name, folder in folders.items():
            _copy_task(model, name, folder)
        model.save_pretrained(scratch, fuse=fuse, **kwargs)
        if tags:
            for path in Path(scratch).rglob(CARD_FILE):
                card = ModelCard.load(path)
                card.data.tags = sorted({*(card.data.tags or []), *tags})
                card.save(path)
        commit = huggingface_hub.upload_folder(
            repo_id=repo_id,
            folder_path=scratch,
            commit_message=commit_message or "Upload AoT adapter",
            commit_description=commit_description,
            token=token,
            revision=revision,
            create_pr=create_pr,
            # an older table would be stale
            delete_patterns=[str(folder.relative_to(scratch) / TABLE_FILE) for folder in folders.values()],
        )
    return commit


def _copy_task(model: PeftModel, adapter_name: str, folder: Path) -> None:
    tuner = _tuner(model)
    source = tuner.sources.get(adapter_name)
    if source is None or source.versions != tuner.lookup.factor_versions(adapter_name):
        return  # trained since: its scores are not known
    task = adapter_file(source.model_id, TASK_FILE, **source.hub)
    if task is not None:
        folder.mkdir(exist_ok=True)
        shutil.copy(task, folder)


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path

"""Adapters of this package as files: saved as one, loaded or not at all, pushed to the hub with a card that says all.

Called in place of `PeftModel`'s own methods (see `_registration`); other methods' adapters never come here. What a
method saves beside its values is its own business, see `stored`.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
from huggingface_hub import ModelCard
from peft import PeftConfig, PeftModel
from peft.utils import CONFIG_NAME, SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME

from peft_aot.card import CARD_FILE, TASK_FILE, complete_card, describe, read_task
from peft_aot.head_card import HEAD_FILE, given_options, write_head_card
from peft_aot.source import Source
from peft_aot.staging import finish, staged
from peft_aot.stored import StoredTuner, stored_tuners
from peft_aot.tuner import TaskTuner
from peft_aot.undo import keep_adapters
from peft_aot.unfinished import scratch_folder

WEIGHTS = (SAFETENSORS_WEIGHTS_NAME, WEIGHTS_NAME)


def save_adapters(
    model: PeftModel,
    save: Callable[..., None],
    save_directory: str | Path,
    *,
    selected_adapters: list[str] | None = None,
    is_main_process: bool = True,
    safe_serialization: bool = True,
    tokenizer_args: Mapping[str, Any] | None = None,
    pooling: str | None = None,
    **kwargs: Any,
) -> None:
    """Save adapters as `PeftModel.save_pretrained` does, each all or nothing, with what its method saves beside it.

    Args:
        model: The model whose adapters to save.
        save: The original `save_pretrained`, bound to the model.
        save_directory: Where to; an adapter not named "default" gets a folder below, as always in PEFT.
        selected_adapters: Names of the adapters, by default all.
        is_main_process: False writes nothing.
        safe_serialization: Whether as safetensors.
        tokenizer_args: Arguments for the tokenizer's call (`max_length`, `truncation`, `add_special_tokens`) that
            whoever asks the adapters needs; remembered.
        pooling: How feature extraction makes one vector of hidden states, "mean" or "cls"; remembered.
        kwargs: The method's own options; the rest is passed on.

    Raises:
        TypeError: Another method's option.
        ValueError: The method cannot save so, or there are no such tokenizer arguments or pooling.
    """
    tuner = _tuner(model)
    given = given_options(tokenizer_args, pooling)
    options = _own_options(kwargs, tuner, "save_pretrained", lambda method: method.save_options)
    kwargs.update(
        selected_adapters=selected_adapters, is_main_process=is_main_process, safe_serialization=safe_serialization
    )
    target = Path(save_directory)
    names = list(model.peft_config) if selected_adapters is None else selected_adapters
    if not is_main_process or target.is_file() or any(name not in model.peft_config for name in names):
        save(str(save_directory), **kwargs)  # nothing to write, or PEFT's own refusal
        return
    tuner.check_saving(names, safe_serialization, options)
    sections = []
    with scratch_folder(_existing_parent(target)) as scratch:
        if (target / CARD_FILE).is_file():
            shutil.copy(target / CARD_FILE, scratch)  # PEFT updates the card that is there
        save(str(scratch), **kwargs)
        for name in names:
            subfolder = None if name == "default" else name
            source, destination = scratch / (subfolder or ""), target / (subfolder or "")
            with staged(destination, CONFIG_NAME, (*WEIGHTS, HEAD_FILE, *tuner.extra_files)) as folder:
                for path in source.iterdir():
                    if path.is_file() and path.name != CARD_FILE:
                        shutil.move(path, folder)
                write_head_card(tuner.head_card(name, given), folder)
                beside = tuner.complete_saved(name, folder, options)
                about = (type(tuner), name, model.peft_config[name], beside, read_task(destination))
                card = destination / CARD_FILE if subfolder and (destination / CARD_FILE).is_file() else None
                complete_card(card or scratch / CARD_FILE, folder / CARD_FILE, tuner.tag, [describe(*about)])
            sections.append(describe(*about, subfolder))
            tuner.note_source(name, Source(destination))
            tuner.say_of_head(name, given)
        if "default" not in names:
            complete_card(scratch / CARD_FILE, scratch / CARD_FILE, tuner.tag, sections)
            with contextlib.suppress(OSError):
                shutil.move(scratch / CARD_FILE, target / CARD_FILE)


def load_adapter(
    model: PeftModel,
    load: Callable[..., Any],
    model_id: str | Path,
    adapter_name: str,
    *args: Any,
    **kwargs: Any,
) -> Any:
    """Load an adapter as `PeftModel.load_adapter` does, with what its method saved beside it, or leave all as it was.

    Args:
        model: The model to load into.
        load: The original `load_adapter`, bound to the model.
        model_id: Folder or hub id.
        adapter_name: The adapter's name in the model.
        args: Passed on.
        kwargs: The method's own options; the rest is passed on.

    Returns:
        What the original returns.

    Raises:
        TypeError: Another method's option, or another method's adapter.
        ValueError: The adapter does not fit the model, or one of the same name in it.
    """
    tuner = _tuner(model)
    options = _own_options(kwargs, tuner, "load_adapter", lambda method: method.load_options)
    source = Source.named(model_id, kwargs)
    if source.folder is not None:
        finish(source.folder, CONFIG_NAME)
    if adapter_name in model.peft_config:
        _check_replacement(tuner, adapter_name, source)
    with keep_adapters(model, tuner, adapter_name):
        result = load(model_id, adapter_name, *args, **kwargs)
        tuner.adapter_loaded(adapter_name, source, options)
        card = tuner.find_head_card(adapter_name, source)
    tuner.note_source(adapter_name, source)
    tuner.note_head_card(adapter_name, card)
    return result


def push_adapters(
    model: PeftModel,
    repo_id: str,
    *,
    commit_message: str | None = None,
    commit_description: str | None = None,
    private: bool | None = None,
    token: bool | str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str | None = None,
    tags: list[str] | None = None,
    tokenizer_args: Mapping[str, Any] | None = None,
    pooling: str | None = None,
    **kwargs: Any,
) -> huggingface_hub.CommitInfo:
    """Save to a scratch folder and upload it.

    The `task.json` of an adapter that is as it was loaded or saved goes along, for its scores.

    Args:
        model: The model whose adapters to push.
        repo_id: `user/name` on the hub; created if needed.
        commit_message: Of the upload.
        commit_description: Of the upload.
        private: Whether a new repository is private.
        token: To authenticate with; by default the one stored by `hf auth login`.
        revision: Branch to upload to; created if needed.
        create_pr: Open a pull request instead of committing.
        max_shard_size: Ignored: adapters are not sharded.
        tags: More tags for the model card.
        tokenizer_args: As for `save_pretrained`.
        pooling: As for `save_pretrained`.
        kwargs: The method's own options and whatever else `save_pretrained` takes.

    Returns:
        The commit, a str that is its address.

    Raises:
        TypeError: Another method's option.
        ValueError: There are no such tokenizer arguments or pooling.
    """
    tuner = _tuner(model)
    given = given_options(tokenizer_args, pooling)
    _own_options({**kwargs}, tuner, "push_to_hub", lambda method: method.save_options)
    repo_id = huggingface_hub.create_repo(repo_id, private=private, token=token, exist_ok=True).repo_id
    if revision is not None and not revision.startswith("refs/pr"):
        huggingface_hub.create_branch(repo_id, branch=revision, token=token, exist_ok=True)
    names = kwargs.get("selected_adapters") or list(model.peft_config)
    with tempfile.TemporaryDirectory() as scratch:
        existing = Source(repo_id, {"token": token, "revision": revision}).file(CARD_FILE)
        if existing is not None:
            shutil.copy(existing, scratch)
        folders = {name: Path(scratch, "" if name == "default" else name) for name in names}
        for name, folder in folders.items():
            _copy_task(tuner, name, folder)
        model.save_pretrained(scratch, **given, **kwargs)
        if tags:
            for path in Path(scratch).rglob(CARD_FILE):
                card = ModelCard.load(path)
                card.data.tags = sorted({*(card.data.tags or []), *tags})
                card.save(path)
        replaced = (*WEIGHTS, HEAD_FILE, *tuner.extra_files)  # an older one that is not written anew would be stale
        commit = huggingface_hub.upload_folder(
            repo_id=repo_id,
            folder_path=scratch,
            commit_message=commit_message or f"Upload {tuner.method} adapter",
            commit_description=commit_description,
            token=token,
            revision=revision,
            create_pr=create_pr,
            delete_patterns=[
                str(folder.relative_to(scratch) / name) for folder in folders.values() for name in replaced
            ],
        )
    return commit


def _tuner(model: PeftModel) -> TaskTuner:
    tuner = model.base_model
    if not isinstance(tuner, TaskTuner):
        raise TypeError(f"expected a model with adapters of this package, got {type(tuner).__name__}; use PEFT's own")
    return tuner


def _own_options(
    kwargs: dict[str, Any],
    tuner: TaskTuner,
    call: str,
    options_of: Callable[[type[StoredTuner]], frozenset[str]],
) -> Mapping[str, Any]:
    """Take the method's own options out of `kwargs`, where PEFT would ignore those of other methods without a word."""
    own = options_of(type(tuner))
    for name in sorted(frozenset().union(*map(options_of, stored_tuners().values())) - own):
        if name in kwargs:
            raise TypeError(
                f"expected {call}() with arguments that {tuner.method} has, got an unexpected keyword argument "
                f"'{name}'; leave it out"
            )
    return {name: kwargs.pop(name) for name in own if name in kwargs}


def _check_replacement(tuner: TaskTuner, adapter_name: str, source: Source) -> None:
    """Refuse to load values into an adapter of the same name that computes something else from them."""
    try:
        loaded = PeftConfig.from_pretrained(str(source.model_id), **source.hub)
    except ValueError:
        return  # no configuration there: PEFT only needs the weights of an adapter it knows
    if not isinstance(loaded, tuner.config_cls):
        raise TypeError(
            f"expected a {tuner.config_cls.__name__} in {source.model_id}, got {type(loaded).__name__}; do not mix "
            f"methods in one model"
        )
    for field in tuner.fixed:
        new, old = getattr(loaded, field), getattr(tuner.peft_config[adapter_name], field)
        if new is not None and old is not None and new != old:
            raise ValueError(
                f"expected {field}={old} as in the adapter '{adapter_name}' that is there, got {field}={new}; call "
                f"delete_adapter first, or load it under another name"
            )


def _copy_task(tuner: TaskTuner, adapter_name: str, folder: Path) -> None:
    source = tuner.present_source(adapter_name)
    task = None if source is None else source.file(TASK_FILE)
    if task is not None:  # else trained since: its scores are not known
        folder.mkdir(exist_ok=True)
        shutil.copy(task, folder)


def _existing_parent(path: Path) -> Path:
    path = path.absolute()
    while not path.is_dir():
        path = path.parent
    return path

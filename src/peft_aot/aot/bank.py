"""Many tasks on one model, as data: beside its modules, so that the thousandth is loaded as fast as the first.

PEFT puts each adapter into the model as modules, and whatever walks the modules walks all of all adapters. A bank
keeps each task as an immutable `BankedTask`. A batch takes the tasks that are there when it begins, and keeps them to
its end.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from peft import PeftModel

from peft_aot.routing import BASE, RoutedHead, route_heads
from peft_aot.source import Source
from peft_aot.suggestions import did_you_mean

from .banked import BankedTask
from .config import as_aot
from .model import AoTModel
from .read_task import HeadReader, model_heads, read_task


class TaskBank:
    """Tasks of one model that are added, replaced and removed while batches run.

    Tasks are asked for by name as adapters are, with `adapter_names`, and may share a batch with these. They are for
    inference, in eager calls. All methods may be called from any thread. The tasks belong to the model, and go along
    when it is copied or pickled; any number of banks may be made of one model, which all show the same tasks.

    Args:
        model: A model with an AoT adapter, which says which blocks are wrapped and which heads a task may bring.
        read_heads: Makes the heads of tasks in another way, for who runs heads that are none of the model's.

    Raises:
        TypeError: Not a model with an AoT adapter.

    Example:
        >>> bank = TaskBank(model)
        >>> bank.add("boolq", "tasks/boolq")
        >>> model(**batch, adapter_names=["boolq", "boolq", "__base__"])
    """

    def __init__(self, model: PeftModel, read_heads: HeadReader | None = None) -> None:
        tuner = getattr(model, "base_model", None)
        if not isinstance(tuner, AoTModel):
            raise TypeError(
                f"expected a PeftModel with an AoT adapter, got {type(model).__name__}; load one with "
                f"PeftModel.from_pretrained, or make one with get_peft_model(backbone, AoTConfig(...))"
            )
        self._tuner = tuner
        self._like = as_aot(next(iter(tuner.peft_config.values())))
        self._read_heads = read_heads
        self._injections = -1
        self._heads: dict[str, RoutedHead] = {}

    @property
    def tasks(self) -> Mapping[str, BankedTask]:
        """The tasks that are there now, by name; the mapping stays as it is when tasks come and go."""
        return self._tuner.banked

    def add(self, name: str, model_id: str | Path, *, use_table: bool = True, **hub: Any) -> None:
        """Add a task.

        Args:
            name: What to call it; no adapter or task has this name.
            model_id: Folder or hub id of a saved adapter.
            use_table: Whether to use the table that was saved with it.
            hub: Arguments of the hub, such as `subfolder`, `revision` and `token`.

        Raises:
            FileNotFoundError: No adapter there.
            TypeError: Another method's adapter.
            ValueError: The name is taken or no good, or the adapter does not fit the model. Nothing has changed.
        """
        self._check_free(name)
        task = self._read(model_id, use_table, hub)

        def put(tasks: dict[str, BankedTask]) -> bool:
            self._check_free(name)
            tasks[name] = task
            return True

        self._tuner.change_banked(put)

    def replace(self, name: str, model_id: str | Path, *, use_table: bool = True, **hub: Any) -> None:
        """Put another adapter in a task's place; batches that have begun end with the old one. See `add`."""
        self._check_there(name)
        task = self._read(model_id, use_table, hub)

        def put(tasks: dict[str, BankedTask]) -> bool:
            self._check_there(name)
            tasks[name] = task
            return True

        self._tuner.change_banked(put)

    def remove(self, name: str) -> None:
        """Remove a task; batches that have begun end with it.

        Raises:
            ValueError: No such task.
        """

        def take(tasks: dict[str, BankedTask]) -> bool:
            self._check_there(name)
            del tasks[name]
            return True

        self._tuner.change_banked(take)

    @property
    def nbytes(self) -> int:
        """Bytes that factors and heads take; tables are mapped from their files."""
        return sum(task.nbytes for task in self.tasks.values())

    def __len__(self) -> int:
        return len(self.tasks)

    def __contains__(self, name: object) -> bool:
        return name in self.tasks

    def __iter__(self) -> Iterator[str]:
        return iter(self.tasks)

    def _read(self, model_id: str | Path, use_table: bool, hub: Mapping[str, Any]) -> BankedTask:
        if self._injections != self._tuner.injections:  # which may have brought heads
            self._injections = self._tuner.injections
            self._heads = {head.path: head for head in route_heads(self._tuner.model, self._tuner)}
        source = Source.named(model_id, hub)
        read_heads = self._read_heads or functools.partial(model_heads, self._heads)
        return read_task(source, self._like, self._tuner.lookup.stacks, read_heads, use_table)

    def _check_free(self, name: str) -> None:
        if not isinstance(name, str) or not name or name == BASE:
            raise ValueError(f"expected a task's name, got {name!r}; pass a str other than '{BASE}'")
        if name in self.tasks or name in self._tuner.peft_config:
            raise ValueError(f"expected a new name, got '{name}', which is taken; choose another, or call replace()")

    def _check_there(self, name: str) -> None:
        if name not in self.tasks:
            hint = did_you_mean(str(name), list(self.tasks)) if self.tasks else "the bank is empty"
            raise ValueError(f"expected the name of a task in the bank, got '{name}'; {hint}")

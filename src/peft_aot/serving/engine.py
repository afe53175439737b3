"""The engine: tasks that come and go, requests for any of them, batches that mix them.

Three threads meet here. A caller's encodes its text and puts it into the queue; one prepares the next batch, and
fetches its rows, while another runs the last one. What makes a batch is the business of `scheduler`, what is done with
it that of `batch`.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch

from peft_aot.aot.bank import TaskBank
from peft_aot.loading import pick_device
from peft_aot.one_thread import one_thread
from peft_aot.routing import BASE
from peft_aot.suggestions import did_you_mean

from .batch import Asked, Batches
from .batch_record import BatchRecord
from .body import Precision, load_body
from .errors import Overloaded, UnknownTask
from .limits import Limits
from .pipeline import Pipeline, TaskForgotten
from .request import Answer, Request, TaskInfo
from .served import HeadReaders, Served, served


class Engine:
    """Serves many tasks on one frozen backbone, in batches that mix them.

    All methods may be called from any thread. The answer to a text does not depend on what shares its batch, but for
    the rounding of products of other shapes: probabilities and the numbers of an embedding differ by at most 1e-4 in
    fp32 and 2e-2 in bf16, and so does a regression's value where values are about as large as one.

    Args:
        backbone: Hub id or local path; its head, if it has one, is left out.
        placement: Where rows are kept, see `AoTModel.set_table_placement`.
        memory_budget: Bytes for that.
        precision: Of the backbone's weights; "auto" is bfloat16 where the hardware multiplies it.
        device: Where to run; None is the accelerator, if there is one.
        limits: What makes a batch, and how many requests may wait.

    Attributes:
        backbone: Its hub id or path.
        width: D, the length of an embedding.
        observers: Called with a `BatchRecord` after each batch, in the engine's thread.

    Raises:
        FileNotFoundError: The backbone cannot be had.

    Example:
        >>> with Engine("sentence-transformers/all-MiniLM-L6-v2") as engine:
        ...     engine.add_task("trec", "adapters/trec")
        ...     engine.answer([Request("trec", "How far is the moon?")])
    """

    def __init__(
        self,
        backbone: str | Path,
        *,
        placement: str = "auto",
        memory_budget: int | Literal["auto"] | None = "auto",
        precision: Precision = "auto",
        device: torch.device | str | None = None,
        limits: Limits = Limits(),  # noqa: B008 - frozen
    ) -> None:
        self._device = pick_device() if device is None else torch.device(device)
        with one_thread(self._device):
            loaded = load_body(backbone, precision, self._device)
        loaded.model.set_table_placement(placement, memory_budget)
        self._model = loaded.model
        self.backbone = str(backbone)
        self.width = int(loaded.body.config.hidden_size)
        self._encoder = loaded.encoder
        readers = HeadReaders(loaded.body, loaded.pooler)
        self._bank = TaskBank(loaded.model, readers)
        self._numbers = itertools.count()
        self._changing = threading.Lock()
        info = TaskInfo(BASE, "embedding", (), self._encoder.longest, self.backbone, 0, False)
        self._base = Served(info, None, {}, {})
        self._tasks: Mapping[str, Served] = {}
        self._infos: Mapping[str, TaskInfo] = {}
        self._batches = Batches(loaded.model, loaded.encoder, readers.classes, self._device)
        self._pipeline = Pipeline(self._batches, limits, self._forget)
        self.observers: list[Callable[[BatchRecord], None]] = self._pipeline.observers

    # tasks

    @property
    def tasks(self) -> Mapping[str, TaskInfo]:
        """The tasks that are there now, by name; the mapping stays as it is when tasks come and go."""
        return self._infos

    def add_task(self, name: str, adapter: str | Path, **hub: Any) -> TaskInfo:
        """Add a task; requests are answered meanwhile.

        Args:
            name: What to call it.
            adapter: Folder or hub id of a saved adapter.
            hub: Arguments of the hub, such as `subfolder`, `revision` and `token`.

        Raises:
            FileNotFoundError: No adapter there.
            TypeError: Another method's adapter.
            ValueError: The name is taken or no good, or the adapter does not fit. Nothing has changed.
        """
        self._check_name(name)
        self._check_taken(name, wanted=False)
        return self._put(name, adapter, hub, wanted=False)

    def replace_task(self, name: str, adapter: str | Path, **hub: Any) -> TaskInfo:
        """Put another adapter in a task's place; requests that were accepted before get the old one's answers."""
        self._check_taken(name, wanted=True)
        return self._put(name, adapter, hub, wanted=True)

    def remove_task(self, name: str) -> None:
        """Remove a task; requests that were accepted before are still answered.

        Raises:
            UnknownTask: No such task.
        """
        with self._changing:
            self._check_taken(name, wanted=True)
            tasks = dict(self._tasks)
            old = tasks.pop(name)
            self._change(tasks)
        self._pipeline.retire(old)

    def _put(self, name: str, adapter: str | Path, hub: Mapping[str, Any], wanted: bool) -> TaskInfo:
        key = f"{name}#{next(self._numbers)}"
        with one_thread(self._device):
            self._bank.add(key, adapter, **hub)
        banked = self._bank.tasks[key]
        task = served(
            name, key, banked.heads, str(adapter), banked.nbytes, banked.table is not None, self._encoder.longest
        )
        try:
            with self._changing:
                self._check_taken(name, wanted)  # another thread may have been quicker
                old = self._tasks.get(name)
                self._change({**self._tasks, name: task})
        except ValueError:
            self._bank.remove(key)
            raise
        if old is not None:
            self._pipeline.retire(old)
        return task.info

    def _change(self, tasks: Mapping[str, Served]) -> None:
        self._tasks, self._infos = tasks, {name: task.info for name, task in tasks.items()}

    def _forget(self, task: Served) -> None:
        if task.key is not None:
            self._bank.remove(task.key)

    def _check_name(self, name: str) -> None:
        if not isinstance(name, str) or not name.strip() or name == BASE or not name.isprintable():
            raise ValueError(f"expected a task's name, got {name!r}; pass printable characters other than '{BASE}'")

    def _check_taken(self, name: str, wanted: bool) -> None:
        if wanted and name not in self._tasks:
            raise UnknownTask(f"expected the name of a task, got {name!r}; {self._hint(name)}")
        if not wanted and name in self._tasks:
            raise ValueError(f"expected a new name, got '{name}', which is taken; choose another, or replace the task")

    def _hint(self, name: str) -> str:
        return did_you_mean(str(name), list(self._tasks)) if self._tasks else "there are no tasks yet, add one"

    # requests

    def submit(self, request: Request) -> Future[Answer]:
        """Put a request into the queue.

        Returns:
            The answer to come, or `DeadlineExceeded`; cancelling it withdraws the request.

        Raises:
            UnknownTask: No such task.
            ValueError: No text, or a second text where the task reads one.
            Overloaded: The queue has no room.
            EngineClosed: The engine was closed.
        """
        while True:
            with contextlib.suppress(TaskForgotten):  # replaced or removed while the text was encoded
                return self._submit(request)

    def _submit(self, request: Request) -> Future[Answer]:
        self._pipeline.check_open()
        if not isinstance(request.task, str):
            raise UnknownTask(f"expected the name of a task, got {request.task!r}; pass a str")
        task = self._base if request.task == BASE else self._tasks.get(request.task)
        if task is None:
            raise UnknownTask(f"expected the name of a task, got {request.task!r}; {self._hint(request.task)}")
        _check(request, task)
        self._pipeline.check_room(task)
        encoded = self._encoder.encode(request.text, request.pair, task.arguments, words=task.info.kind == "tokens")
        if not len(encoded):
            raise ValueError("expected text, got nothing that the tokenizer reads; send letters or digits")
        return self._pipeline.put(Asked(request, task, encoded))

    def answer(self, requests: Sequence[Request]) -> list[Answer]:
        """Answer requests, in order, and wait for that; as many as there are, a queue at a time.

        Raises:
            What `submit` raises, and what the answers to come would: the first that fails, when all have ended.
        """
        futures: list[Future[Answer]] = []
        try:
            for request in requests:
                futures.append(self._submit_patiently(request, futures))
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        return [future.result() for future in futures]

    def _submit_patiently(self, request: Request, before: Sequence[Future[Answer]]) -> Future[Answer]:
        while True:
            try:
                return self.submit(request)
            except Overloaded as error:
                pending = next((future for future in before if not future.done()), None)
                if pending is None:
                    time.sleep(min(error.retry_after, 0.1))
                    continue
                try:
                    pending.exception()
                except CancelledError:
                    continue

    async def ask(self, request: Request) -> Answer:
        """Answer a request; cancelling the task that awaits it withdraws it. Raises what `submit` raises."""
        return await asyncio.wrap_future(self.submit(request))

    # the engine itself

    @property
    def queued(self) -> int:
        """How many requests wait."""
        return self._pipeline.queued

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        """Take no more requests, end the threads, and give back the memory for rows.

        Args:
            drain: Whether to answer what was accepted; otherwise it fails with `EngineClosed`.
            timeout: Seconds to wait at most; what is not answered then fails.
        """
        self._pipeline.close(drain, timeout)
        self._model.set_table_placement("factors")  # gives the memory for rows back at once

    def __enter__(self) -> Engine:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(drain=kind is None)


def _check(request: Request, task: Served) -> None:
    for text in (request.text, request.pair):
        if text is None:
            continue
        if not isinstance(text, str):
            raise ValueError(f"expected a text, got {type(text).__name__}; pass a str")
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"expected text, got half of a surrogate pair at character {error.start}; decode it with the encoding "
                f"it was written in"
            ) from error
    if not isinstance(request.text, str) or not request.text.strip():
        raise ValueError("expected text, got nothing; send at least one character that is no space")
    if request.pair is not None and task.info.kind in {"tokens", "embedding"}:
        raise ValueError(
            f"expected one text for the task '{task.info.name}', which answers {task.info.kind}, got two; send one"
        )
    timeout = request.timeout
    if timeout is not None and not (isinstance(timeout, (int, float)) and math.isfinite(timeout) and timeout > 0):
        raise ValueError(f"expected a timeout in seconds above zero, got {timeout!r}; leave it out to wait")

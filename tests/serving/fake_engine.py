"""An engine without a model, for tests of what stands around one.

It answers by rules that can be read off: a text with "good" in it is positive, capitalized words are entities, a number
is the text's length. A task's folder says its kind in `adapter_config.json`; weights that read "broken" cannot be read.
"""

from __future__ import annotations

import json
import queue
import re
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from peft_aot.serving.errors import EngineClosed, Overloaded, UnknownTask
from peft_aot.serving.request import (
    Answer,
    Classification,
    Embedding,
    Entity,
    Kind,
    MultiLabel,
    Regression,
    Request,
    Tags,
    TaskInfo,
    Word,
)

WIDTH = 4
LABELS: Mapping[Kind, tuple[str, ...]] = {
    "single_label": ("negative", "positive"),
    "multi_label": ("sad", "glad", "calm"),
    "regression": (),
    "tokens": ("O", "B-NAME"),
    "embedding": (),
}


@dataclass(frozen=True)
class BatchRecord:
    examples: int
    tasks: int
    tokens: int
    padded_tokens: int
    seconds: float
    waited: tuple[float, ...]
    hits: Mapping[str, int]


def task(name: str, kind: Kind = "single_label", labels: tuple[str, ...] | None = None) -> TaskInfo:
    return TaskInfo(name, kind, LABELS[kind] if labels is None else labels, 128, "memory", 1000, False)


EVERY_KIND = (
    task("sentiment"),
    task("moods", "multi_label"),
    task("length", "regression"),
    task("names", "tokens"),
    task("vectors", "embedding"),
)


def save(folder: Path, kind: Kind = "single_label", weights: bytes = b"weights") -> Path:
    """Write what this engine takes for an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_model.safetensors").write_bytes(weights)
    (folder / "adapter_config.json").write_text(json.dumps({"kind": kind}))
    return folder


class FakeEngine:
    """Answers one request after the other, as soon as `go` is set."""

    backbone = "fake-backbone"
    width = WIDTH

    def __init__(self, tasks: tuple[TaskInfo, ...] = EVERY_KIND, room: int = 1000, seconds: float = 0.0) -> None:
        self.tasks: Mapping[str, TaskInfo] = {each.name: each for each in tasks}
        self.observers: list[Callable[[BatchRecord], None]] = []
        self.calls: list[tuple[str, str]] = []
        self.answered = 0
        self.go = threading.Event()
        self.go.set()
        self.closed = False
        self._room = room
        self._seconds = seconds
        self._queue: queue.Queue[tuple[Request, Future[Answer], float] | None] = queue.Queue()
        self._worker = threading.Thread(target=self._work, daemon=True)
        self._worker.start()

    @property
    def queued(self) -> int:
        return self._queue.qsize()

    def add_task(self, name: str, adapter: str | Path) -> TaskInfo:
        if name in self.tasks:
            raise ValueError(f"expected a new name, got {name!r}; replace the task")
        return self._put("add", name, adapter)

    def replace_task(self, name: str, adapter: str | Path) -> TaskInfo:
        return self._put("replace", name, adapter)

    def remove_task(self, name: str) -> None:
        if name not in self.tasks:
            raise UnknownTask(f"expected a task, got {name!r}; add it")
        self.calls.append(("remove", name))
        self.tasks = {key: value for key, value in self.tasks.items() if key != name}

    def submit(self, request: Request) -> Future[Answer]:
        if self.closed:
            raise EngineClosed("expected an open engine, got a closed one; make another")
        if request.task not in self.tasks and request.task != "__base__":
            raise UnknownTask(f"expected a task, got {request.task!r}; add it")
        if not request.text:
            raise ValueError("expected a text with words, got an empty one; send one with words")
        if request.pair is not None and request.task == "names":
            raise ValueError("expected one text, got a pair; send one text")
        if self.queued >= self._room:
            raise Overloaded("expected room in the queue, got none; ask again later", retry_after=0.2)
        future: Future[Answer] = Future()
        self._queue.put((request, future, time.perf_counter()))
        return future

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        self.closed = True
        self._queue.put(None)
        if drain:
            self._worker.join(timeout)

    def _put(self, change: str, name: str, adapter: str | Path) -> TaskInfo:
        self.calls.append((change, name))
        kind: Kind = "single_label"
        if Path(adapter).is_dir():
            if (Path(adapter) / "adapter_model.safetensors").read_bytes() == b"broken":
                raise RuntimeError("incomplete metadata, file not fully covered")
            kind = json.loads((Path(adapter) / "adapter_config.json").read_text())["kind"]
        info = task(name, kind)
        self.tasks = {**self.tasks, name: info}
        return info

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            self.go.wait()
            request, future, since = item
            if not future.set_running_or_notify_cancel():
                continue
            start = time.perf_counter()
            time.sleep(self._seconds)
            record = BatchRecord(1, 1, 5, 8, time.perf_counter() - start, (start - since,), {"memory": 3, "factors": 2})
            for observer in self.observers:
                observer(record)
            self.answered += 1
            try:
                future.set_result(self._answer(request))
            except Exception as error:
                future.set_exception(error)

    def _answer(self, request: Request) -> Answer:
        kind = "embedding" if request.task == "__base__" else self.tasks[request.task].kind
        text = request.text if request.pair is None else f"{request.text} {request.pair}"
        if kind == "tokens":
            return _tags(request.text)
        if kind == "regression":
            return Regression(float(len(text)))
        if kind == "embedding":
            return Embedding(np.full(WIDTH, WIDTH**-0.5, dtype=np.float32))
        good = 0.9 if "good" in text else 0.2
        if kind == "multi_label":
            return MultiLabel(("glad",) if good > 0.5 else (), {"sad": 0.1, "glad": good, "calm": 0.3})
        label, score = ("positive", good) if good > 0.5 else ("negative", 1 - good)
        return Classification(label, score, {"negative": 1 - good, "positive": good})


def _tags(text: str) -> Tags:
    words = [
        Word("B-NAME" if match[0][0].isupper() else "O", match.start(), match.end(), 0.75)
        for match in re.finditer(r"\w+", text)
    ]
    named = [word for word in words if word.label != "O"]
    return Tags(tuple(words), tuple(Entity("NAME", w.start, w.end, text[w.start : w.end], w.score) for w in named))

"""Does any request get an answer of another task, or of another version of its own, while tasks come and go?

Many threads ask an engine on a tiny backbone with random weights, others add, replace and remove tasks all the time. A
task's labels carry its name and version, so that an answer says whose head was taken; its probabilities are compared
with those of that version alone, so that rows of another would show.
"""

from __future__ import annotations

import itertools
import random
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import torch
from rich.progress import Progress
from transformers import AutoModelForSequenceClassification, AutoTokenizer, BertConfig, BertForSequenceClassification

from _tasks import AOT, save_tasks
from load.saved import LABELS, alone
from load.setting import CPU, Setting, console
from peft_aot import AoTConfig
from peft_aot.head_card import HeadCard, write_head_card
from peft_aot.serving import Classification, Engine, Overloaded, Request, UnknownTask

TASKS, VERSIONS, CHANGERS, TEXTS = 16, 2, 2, 12
SCALE = 0.5
"""Of random values: so large that two tasks never answer alike."""
Expected = dict[tuple[str, str], torch.Tensor]


def measure(setting: Setting, requests: int, threads: int) -> None:
    """Ask while tasks change.

    Args:
        setting: Where texts and a tokenizer are from.
        requests: Answers to get.
        threads: That ask.
    """
    if setting.book.has("isolation", requests=requests):
        return
    tiny = replace(setting, model=_tiny_backbone(setting), precision="fp32")
    texts = list(setting.texts[:TEXTS])
    console.print(f"isolation: {TASKS} tasks of {VERSIONS} versions, each alone first")
    folders = _versions(tiny)
    expected: Expected = {}
    for (task, version), folder in folders.items():
        for text, row in zip(texts, alone(tiny, folder, texts), strict=True):
            expected[f"{task}/{version}", text] = row
    nearest = _nearest(expected, texts)
    with Engine(tiny.model, device=CPU, memory_budget=tiny.budget, precision=tiny.precision) as engine:
        run = Run(engine, folders, expected, texts, requests, threads, tolerance=min(tiny.tolerance, nearest / 2))
        run.go()
    facts = {"nearest_other_answer": round(nearest, 5), **run.told()}
    console.print(facts)
    setting.book.add("isolation", **tiny.facts(), requests=requests, clients=threads, **facts)
    if run.counts["of another task"] or run.counts["of another version"] or run.counts["other numbers"]:
        raise RuntimeError(f"expected every answer to be its own task's, got {dict(run.counts)}; see the record")


class Run:
    """Threads that ask and threads that change tasks.

    Args:
        engine: An engine without tasks.
        folders: Saved tasks by name and version.
        expected: Probabilities by label prefix and text.
        texts: What is asked.
        requests: How many answers to get.
        threads: How many ask.
        tolerance: Largest difference of a probability.
    """

    def __init__(
        self,
        engine: Engine,
        folders: dict[tuple[str, str], Path],
        expected: Expected,
        texts: list[str],
        requests: int,
        threads: int,
        tolerance: float,
    ) -> None:
        self._engine, self._folders, self._expected = engine, folders, expected
        self._texts, self._requests, self._threads, self._tolerance = texts, requests, threads, tolerance
        self._names = sorted({task for task, _ in folders})
        self._done = threading.Event()
        self._counting = threading.Lock()
        self._began = time.monotonic()
        self.counts: Counter[str] = Counter()
        self.worst = 0.0

    def go(self) -> None:
        """Run until all are answered."""
        for task in self._names:
            self._engine.add_task(task, self._folders[task, "v0"])
        with Progress(console=console) as bar, ThreadPoolExecutor(self._threads + CHANGERS) as pool:
            ticks = bar.add_task("isolation", total=self._requests)
            changers = [pool.submit(self._change, self._names[number::CHANGERS], number) for number in range(CHANGERS)]
            askers = [pool.submit(self._ask, number) for number in range(self._threads)]
            try:
                while not all(asker.done() for asker in askers):
                    bar.update(ticks, completed=min(self.counts["answered"], self._requests))
                    time.sleep(0.2)
            finally:
                self._done.set()
            for future in (*askers, *changers):
                future.result()
            bar.update(ticks, completed=self._requests)

    def told(self) -> dict[str, object]:
        """Return what was counted."""
        names = ("of another task", "of another version", "other numbers")
        return {
            "counts": {**dict.fromkeys(names, 0), **self.counts},
            "largest_difference": round(self.worst, 6),
            "seconds": round(time.monotonic() - self._began, 2),
        }

    def _count(self, what: str, difference: float = 0.0) -> None:
        with self._counting:
            self.counts[what] += 1
            self.worst = max(self.worst, difference)

    def _change(self, names: list[str], seed: int) -> None:
        """Add, replace and remove tasks; every task is changed by one thread only."""
        rng = random.Random(f"changes {seed}")
        while not self._done.is_set():
            task, version = rng.choice(names), f"v{rng.randrange(VERSIONS)}"
            folder = self._folders[task, version]
            if task not in self._engine.tasks:
                self._engine.add_task(task, folder)
                self._count("added")
            elif rng.random() < 0.3:
                self._engine.remove_task(task)
                self._count("removed")
            else:
                self._engine.replace_task(task, folder)
                self._count("replaced")

    def _ask(self, seed: int) -> None:
        rng = random.Random(f"questions {seed}")
        while self.counts["answered"] < self._requests:
            task, text = rng.choice(self._names), rng.choice(self._texts)
            before = self._engine.tasks.get(task)
            try:
                future = self._engine.submit(Request(task, text))
            except UnknownTask:
                self._count("refused: task is away")
                continue
            except Overloaded:
                self._count("refused: queue is full")
                time.sleep(0.01)
                continue
            after = self._engine.tasks.get(task)
            answer = future.result()
            self._count("answered")
            if not isinstance(answer, Classification):
                raise TypeError(f"expected a classification of {task}, got {answer}")
            whose, _, _ = answer.label.rpartition("/")
            if not whose.startswith(f"{task}/"):
                self._count("of another task")
            elif before is after and before is not None and answer.label not in before.labels:
                self._count("of another version")
            off = float((torch.tensor(list(answer.scores.values())) - self._expected[whose, text]).abs().max())
            self._count("other numbers" if not off <= self._tolerance else "right", off)


def _tiny_backbone(setting: Setting) -> Path:
    folder = setting.scratch / "tiny"
    if not folder.is_dir():
        tokenizer = AutoTokenizer.from_pretrained(str(setting.model))
        torch.manual_seed(0)
        sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128}
        model = BertForSequenceClassification(BertConfig(vocab_size=len(tokenizer), **sizes))
        model.bert.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    return folder


def _versions(setting: Setting) -> dict[tuple[str, str], Path]:
    """Save every version of every task, each with labels that say which it is."""

    def backbone() -> torch.nn.Module:
        found: torch.nn.Module = AutoModelForSequenceClassification.from_pretrained(
            str(setting.model), num_labels=LABELS, dtype=torch.float32
        )
        return found

    config = AoTConfig(**{**AOT, "task_type": "SEQ_CLS", "r": 8})
    paths = save_tasks(setting.scratch / "versions", backbone, config, TASKS * VERSIONS, scale=SCALE)
    keys = itertools.product(range(TASKS), range(VERSIONS))
    found = {}
    for (task, version), path in zip(keys, paths, strict=True):
        labels = tuple(f"task{task}/v{version}/{label}" for label in "abcd"[:LABELS])
        write_head_card(HeadCard("SEQ_CLS", "single_label_classification", labels), path)
        found[f"task{task}", f"v{version}"] = path
    return found


def _nearest(expected: Expected, texts: list[str]) -> float:
    """Return how far the nearest answers of two tasks or versions to one text are from each other."""
    nearest = float("inf")
    for text in texts:
        rows = torch.stack([row for (_, own), row in expected.items() if own == text])
        far = torch.cdist(rows, rows, p=float("inf"))
        far.fill_diagonal_(float("inf"))
        nearest = min(nearest, float(far.min()))
    return nearest

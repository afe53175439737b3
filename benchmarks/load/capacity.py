"""How many requests per second does an engine answer, with more and more tasks, and how many the backbone alone?

Every engine and the backbone have a process of their own; one of them at a time is given the same texts, a round of
each in a new order each round. The queue is never empty before a round's end, so that what is timed is saturated.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from _record import figures
from load.apart import Apart
from load.bare import Bare
from load.demand import demand
from load.saved import alone, aot_tasks, check
from load.setting import CPU, Setting, console
from peft_aot.serving import BatchRecord, Classification, Embedding, Engine, Request
from peft_aot.timing import interleave, summarize

BARE = "bare"
CHECKED = 8
"""Tasks whose answers are compared."""


def measure(setting: Setting, texts: int, rounds: int, warmup: int) -> None:
    """Measure every mix.

    Args:
        setting: What is measured on.
        texts: Requests of a round.
        rounds: Rounds that count.
        warmup: Rounds before, in which rows are computed that are kept from then on.
    """
    for mix in setting.mixes:
        if not setting.book.has("capacity", model=setting.name, mix=mix):
            _measure(setting, mix, texts, rounds, warmup)


def _measure(setting: Setting, mix: str, texts: int, rounds: int, warmup: int) -> None:
    aot_tasks(setting, setting.counts[-1])
    with ExitStack() as stack:
        subjects = {BARE: stack.enter_context(Apart(Bare, setting, mix))}
        for tasks in setting.counts:
            engine = subjects[str(tasks)] = stack.enter_context(Apart(Loaded, setting, tasks, mix))
            check_engine(setting, engine, tasks, mix)
        check_bare(subjects[str(setting.counts[0])], subjects[BARE], setting.texts[:16])
        with Progress(console=console) as bar:
            ticks = bar.add_task(f"capacity, {mix}", total=(warmup + rounds) * len(subjects))

            def call(subject: Apart) -> Callable[[], None]:
                def run() -> None:
                    subject.call("run", texts)
                    bar.advance(ticks)

                return run

            calls = {name: call(subject) for name, subject in subjects.items()}
            for _ in range(warmup):
                for run in calls.values():
                    run()
            for subject in subjects.values():
                subject.call("forget")
            timings = interleave(calls, BARE, rounds=rounds, warmup=0)
        batches = {name: subject.call("told") for name, subject in subjects.items()}
    first, last = str(setting.counts[0]), str(setting.counts[-1])
    most_to_least = summarize(last, list(timings[last].samples), list(timings[first].samples))
    for name, timing in timings.items():
        rate = texts * 1000 / timing.milliseconds
        ends = f"{1 / timing.ratio_high:.3f}-{1 / timing.ratio_low:.3f}"
        console.print(f"    {name:>5s} {rate:8.1f} requests/s, {1 / timing.ratio:.3f} ({ends}) of the bare backbone")
    console.print(f"    {last} tasks have {1 / most_to_least.ratio:.3f} of the throughput of {first}")
    setting.book.add(
        "capacity",
        **setting.facts(),
        mix=mix,
        requests=texts,
        warmup_requests=texts * warmup,
        row_budget_bytes=setting.budget,
        requests_per_second={name: round(texts * 1000 / t.milliseconds, 2) for name, t in timings.items()},
        time_over_bare={name: figures(timing) for name, timing in timings.items()},
        time_most_over_least=figures(most_to_least),
        batches=batches,
    )


class Loaded:
    """An engine with tasks called "0", "1" and so on, and what its batches were like since it was last asked to forget.

    Args:
        setting: What is measured on.
        tasks: How many.
        mix: How they are drawn.
    """

    def __init__(self, setting: Setting, tasks: int, mix: str) -> None:
        self._engine = Engine(setting.model, device=CPU, memory_budget=setting.budget, precision=setting.precision)
        for folder in aot_tasks(setting, setting.counts[-1])[:tasks]:
            self._engine.add_task(folder.name, folder)
        self._stream = demand(setting.texts, tasks, mix, seed=1)
        self._sums: Counter[str] = Counter()
        self._rows = (0, 0)
        self._engine.observers.append(self._observe)

    def run(self, number: int) -> None:
        """Answer as many requests."""
        self._engine.answer(list(itertools.islice(self._stream, number)))

    def probabilities(self, requests: Sequence[Request]) -> Tensor:
        """Return (requests, labels) of classifications."""
        answers = self._engine.answer(requests)
        return torch.tensor([list(answer.scores.values()) for answer in answers if isinstance(answer, Classification)])

    def embeddings(self, texts: Sequence[str]) -> Tensor:
        """Return (texts, D): what the backbone alone answers."""
        answers = self._engine.answer([Request("__base__", text) for text in texts])
        return torch.tensor(np.stack([answer.vector for answer in answers if isinstance(answer, Embedding)]))

    def _observe(self, record: BatchRecord) -> None:
        self._sums.update(
            batches=1, requests=record.examples, tasks=record.tasks, tokens=record.tokens, padded=record.padded_tokens
        )

    def _rows_now(self) -> tuple[int, int]:
        # an engine tells nothing of single rows; what it holds does
        cache = self._engine._bank._tuner.lookup.stacks[0].cache
        return (0, 0) if cache is None else (cache.hits, cache.misses)

    def forget(self) -> None:
        """Begin again."""
        self._sums.clear()
        self._rows = self._rows_now()

    def told(self) -> dict[str, float]:
        """Return means of batches, and the share of rows that were kept from before."""
        found, computed = (now - then for now, then in zip(self._rows_now(), self._rows, strict=True))
        batches = max(1, self._sums["batches"])
        return {
            "examples": round(self._sums["requests"] / batches, 2),
            "tasks": round(self._sums["tasks"] / batches, 2),
            "padded_over_tokens": round(self._sums["padded"] / max(1, self._sums["tokens"]), 4),
            "rows_kept": round(found / max(1, found + computed), 4),
        }


def check_engine(setting: Setting, engine: Apart, tasks: int, mix: str) -> None:
    """Compare answers in mixed batches with those of each task alone in PEFT."""
    folders = aot_tasks(setting, setting.counts[-1])[:tasks]
    asked = [Request(folder.name, text) for folder in folders[-CHECKED:] for text in setting.texts[:8]]
    others = itertools.islice(demand(setting.texts, tasks, mix, seed=0), len(asked))
    mixed = [request for pair in zip(asked, others, strict=True) for request in pair]
    expected = torch.cat([alone(setting, folder, setting.texts[:8]) for folder in folders[-CHECKED:]])
    check(setting, f"an engine with {tasks} tasks", engine.call("probabilities", mixed)[::2], expected)


def check_bare(engine: Apart, bare: Apart, texts: Sequence[str]) -> None:
    """Compare the backbone's hidden states with those in the engine."""
    alike = (engine.call("embeddings", texts) * bare.call("embeddings", texts)).sum(1)
    for text, cosine in zip(texts, alike.tolist(), strict=True):
        if cosine < 0.999:
            raise RuntimeError(
                f"expected the bare backbone to compute what the engine's does, got another for {text!r}"
            )


def recorded_rate(setting: Setting, mix: str, tasks: int) -> float | None:
    """Return the requests per second that this run has recorded, if it has."""
    found = setting.book.lines("capacity", model=setting.name, mix=mix)
    rates = [line["requests_per_second"].get(str(tasks)) for line in found]
    return statistics.median(rates) if rates and None not in rates else None

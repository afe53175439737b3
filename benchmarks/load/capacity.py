"""How many requests per second does an engine answer, with more and more tasks, and how many the backbone alone?

All engines and the backbone are in one process; one of them at a time is given the same texts, a round of each in a new
order each round. The queue is never empty before a round's end, so that what is timed is saturated.
"""

from __future__ import annotations

import itertools
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

import torch
from rich.progress import Progress

from _record import figures
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
    engines = {str(number): open_engine(setting, number) for number in setting.counts}
    bare = Bare(setting)
    watched = {name: Watched(engine) for name, engine in engines.items()}
    for name, engine in engines.items():
        check_engine(setting, engine, int(name), mix)
    check_bare(engines[str(setting.counts[0])], bare, setting.texts[:16])
    streams = {name: demand(setting.texts, int(name), mix, seed=1) for name in engines}
    streams[BARE] = demand(setting.texts, setting.counts[-1], mix, seed=1)
    with Progress(console=console) as bar:
        ticks = bar.add_task(f"capacity, {mix}", total=(warmup + rounds) * len(streams))

        def call(name: str) -> Callable[[], None]:
            answer = bare.answer if name == BARE else engines[name].answer

            def run() -> None:
                answer(_take(streams[name], texts))
                bar.advance(ticks)

            return run

        calls = {name: call(name) for name in (BARE, *engines)}
        for _ in range(warmup):
            for run in calls.values():
                run()
        for one in watched.values():
            one.forget()
        bare.tokens = bare.padded = 0
        timings = interleave(calls, BARE, rounds=rounds, warmup=0)
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
        batches={name: one.told() for name, one in watched.items()},
        bare_padded_over_tokens=round(bare.padded / bare.tokens, 4),
    )
    for engine in engines.values():
        engine.close()


class Watched:
    """What the batches of an engine were like, and how many rows were found since it was last asked to forget."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.sums: Counter[str] = Counter()
        self._rows = (0, 0)
        engine.observers.append(self._observe)

    def _observe(self, record: BatchRecord) -> None:
        self.sums.update(
            batches=1, requests=record.examples, tasks=record.tasks, tokens=record.tokens, padded=record.padded_tokens
        )

    def _rows_now(self) -> tuple[int, int]:
        # an engine tells nothing of single rows; what it holds does
        cache = self._engine._bank._tuner.lookup.stacks[0].cache
        return (0, 0) if cache is None else (cache.hits, cache.misses)

    def forget(self) -> None:
        """Begin again."""
        self.sums.clear()
        self._rows = self._rows_now()

    def told(self) -> dict[str, float]:
        """Return means of batches, and the share of rows that were kept from before."""
        found, computed = (now - then for now, then in zip(self._rows_now(), self._rows, strict=True))
        batches = max(1, self.sums["batches"])
        return {
            "examples": round(self.sums["requests"] / batches, 2),
            "tasks": round(self.sums["tasks"] / batches, 2),
            "padded_over_tokens": round(self.sums["padded"] / max(1, self.sums["tokens"]), 4),
            "rows_kept": round(found / max(1, found + computed), 4),
        }


def open_engine(setting: Setting, tasks: int) -> Engine:
    """Return an engine with tasks called "0", "1" and so on."""
    engine = Engine(setting.model, device=CPU, memory_budget=setting.budget, precision=setting.precision)
    for folder in aot_tasks(setting, setting.counts[-1])[:tasks]:
        engine.add_task(folder.name, folder)
    return engine


def check_engine(setting: Setting, engine: Engine, tasks: int, mix: str) -> None:
    """Compare answers in mixed batches with those of each task alone in PEFT."""
    folders = aot_tasks(setting, setting.counts[-1])[:tasks]
    asked = [Request(folder.name, text) for folder in folders[-CHECKED:] for text in setting.texts[:8]]
    others = _take(demand(setting.texts, tasks, mix, seed=0), len(asked))
    found = engine.answer([request for pair in zip(asked, others, strict=True) for request in pair])[::2]
    expected = torch.cat([alone(setting, folder, setting.texts[:8]) for folder in folders[-CHECKED:]])
    check(setting, f"an engine with {tasks} tasks", probabilities(found), expected)


def probabilities(answers: Sequence[object]) -> torch.Tensor:
    """Return (answers, labels) of classifications."""
    return torch.tensor([list(answer.scores.values()) for answer in answers if isinstance(answer, Classification)])


def check_bare(engine: Engine, bare: Bare, texts: Sequence[str]) -> None:
    """Compare the backbone's hidden states with those in the engine."""
    for text, answer in zip(texts, engine.answer([Request("__base__", text) for text in texts]), strict=True):
        if not isinstance(answer, Embedding) or float(bare.embedding(text) @ torch.tensor(answer.vector)) < 0.999:
            raise RuntimeError(
                f"expected the bare backbone to compute what the engine's does, got another for {text!r}"
            )


def _take(stream: Iterator[Request], number: int) -> list[Request]:
    return list(itertools.islice(stream, number))


def recorded_rate(setting: Setting, mix: str, tasks: int) -> float | None:
    """Return the requests per second that this run has recorded, if it has."""
    found = setting.book.lines("capacity", model=setting.name, mix=mix)
    rates = [line["requests_per_second"].get(str(tasks)) for line in found]
    return statistics.median(rates) if rates and None not in rates else None

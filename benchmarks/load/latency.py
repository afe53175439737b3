"""How long does an answer take over HTTP when questions come at random times, with 1 and with many tasks?

One server per number of tasks, all of them up; one at a time is asked, in a new order each round, while others idle.
What the server with the most tasks can answer is measured first, with many clients that wait for their answers; then
users arrive at a share of that, the same for every number of tasks. The generator runs on the same machine.
"""

from __future__ import annotations

import contextlib
import itertools
import random
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from load.capacity import recorded_rate
from load.demand import demand
from load.saved import alone, aot_tasks, check, linked
from load.server import Server
from load.setting import Setting, console
from load.tsung import Load, closed_load, missing, open_load, percentile
from peft_aot.serving import Request

SHARES = (0.5, 0.8)
CLIENTS = 192
"""Of closed load: a batch that runs, one that is prepared, and one that waits."""
BODIES = 50_000


def measure(setting: Setting, command: Sequence[str], seconds: float, rounds: int, warmup: float) -> None:
    """Measure every mix at every share of what the server can take.

    Args:
        setting: What is measured on.
        command: Starts a server.
        seconds: Of arrivals per point, over all rounds.
        rounds: Rounds.
        warmup: Seconds of closed load on every server before.
    """
    reason = missing()
    if reason:
        console.print(f"latency is skipped: {reason}")
        return
    for mix in setting.mixes:
        if not setting.book.has("latency", model=setting.name, mix=mix):
            with contextlib.ExitStack() as stack:
                servers = {number: stack.enter_context(serve(setting, command, number)) for number in setting.counts}
                _measure(setting, servers, mix, seconds, rounds, warmup)


def serve(setting: Setting, command: Sequence[str], tasks: int) -> Server:
    """Return a server with a number of tasks."""
    folders = aot_tasks(setting, setting.counts[-1])[:tasks]
    return Server(command, setting.model, linked(folders, setting.scratch / setting.name / f"first-{tasks}"))


def check_server(setting: Setting, server: Server, tasks: int) -> None:
    """Compare answers over HTTP with those of a task alone in PEFT."""
    for folder in aot_tasks(setting, setting.counts[-1])[:tasks][-2:]:
        texts = setting.texts[:4]
        found = [list(server.ask(Request(folder.name, text))["scores"].values()) for text in texts]
        check(setting, f"a server with {tasks} tasks", torch.tensor(found), alone(setting, folder, texts))


def saturate(setting: Setting, server: Server, tasks: int, mix: str, seconds: float, folder: Path) -> float:
    """Return the requests per second that a server answers when there are always more."""
    requests = itertools.islice(demand(setting.texts, tasks, mix, seed=2), BODIES)
    load = closed_load(server.port, requests, CLIENTS, seconds, folder)
    if set(load.statuses) - {"200"}:
        console.print(f"    closed load got {dict(load.statuses)}")
    return load.rate()


def _measure(
    setting: Setting, servers: dict[int, Server], mix: str, seconds: float, rounds: int, warmup: float
) -> None:
    least, most = setting.counts[0], setting.counts[-1]
    folder = setting.scratch / f"latency-{setting.name}-{mix}"
    for number, server in servers.items():
        check_server(setting, server, number)
        console.print(f"latency, {mix}: warming a server with {number} tasks for {warmup:g} s")
        saturate(setting, server, number, mix, warmup, folder / f"warm-{number}")
    capacity = saturate(setting, servers[most], most, mix, warmup, folder / "capacity")
    console.print(f"    {most} tasks: {capacity:.1f} requests/s at most")
    points = [(share, number) for share in SHARES for number in servers]
    loads: dict[tuple[float, int], list[Load]] = {point: [] for point in points}
    rng = random.Random(0)
    for turn in range(rounds):
        for share, number in rng.sample(points, len(points)):
            requests = itertools.islice(demand(setting.texts, number, mix, seed=10 + turn), BODIES)
            place = folder / f"{turn}-{share}-{number}"
            load = open_load(servers[number].port, requests, share * capacity, seconds / rounds, place)
            loads[share, number].append(load)
            console.print(f"    round {turn + 1}/{rounds}, {share} of it, {number} tasks: {load.percentiles()}")
    for share in SHARES:
        ratios = [
            percentile(many.milliseconds, 95) / percentile(one.milliseconds, 95)
            for many, one in zip(loads[share, most], loads[share, least], strict=True)
        ]
        points_of = {str(number): told(loads[share, number]) for number in servers}
        console.print(f"    at {share}: p95 with {most} tasks is {statistics.median(ratios):.3f} of p95 with {least}")
        for number, point in points_of.items():
            shown = {key: value for key, value in point.items() if key != "samples_ms"}
            console.print(f"        {number:>5s} tasks {shown}")
        setting.book.add(
            "latency",
            **setting.facts(),
            mix=mix,
            share=share,
            rate=round(share * capacity, 3),
            capacity_http=round(capacity, 3),
            capacity_in_process=recorded_rate(setting, mix, most),
            warmup_seconds=warmup,
            p95_most_over_least=[round(ratio, 4) for ratio in ratios],
            tasks=points_of,
            memory_bytes={str(number): server.memory[-1][1] for number, server in servers.items() if server.memory},
        )


def told(loads: Sequence[Load]) -> dict[str, object]:
    """Return the figures of a point, of all its rounds together."""
    samples = [sample for load in loads for sample in load.milliseconds]
    statuses: Counter[str] = sum((load.statuses for load in loads), Counter())
    errors: Counter[str] = sum((load.errors for load in loads), Counter())
    return {
        **{f"p{share}": round(percentile(samples, share), 3) for share in (50, 95, 99)},
        "requests_per_second": round(statistics.fmean(load.rate() for load in loads), 2),
        "statuses": dict(statuses),
        "errors": dict(errors),
        "unanswered": sum(load.unanswered for load in loads),
        "samples_ms": [[round(sample, 2) for sample in load.milliseconds] for load in loads],
    }

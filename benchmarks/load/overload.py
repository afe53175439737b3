"""What happens when twice as much is asked as a server can answer? It refuses the rest, and stays as it is.

Every question must be answered or refused (429, or 504 if it waited too long), memory must not grow, and the server
must answer afterwards.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from load.demand import demand
from load.latency import BODIES, check_server, saturate, serve
from load.setting import Setting, console
from load.tsung import missing, open_load

TIMES = 2
ORDERLY = {"200", "429", "504"}


def measure(setting: Setting, command: Sequence[str], seconds: float, warmup: float) -> None:
    """Ask too much.

    Args:
        setting: What is measured on; the most tasks, the last mix.
        command: Starts a server.
        seconds: How long.
        warmup: Seconds of closed load before, which tell what it can answer.
    """
    reason = missing()
    if reason:
        console.print(f"overload is skipped: {reason}")
        return
    mix, tasks = setting.mixes[-1], setting.counts[-1]
    if setting.book.has("overload", model=setting.name, mix=mix, tasks_loaded=tasks, seconds=seconds):
        return
    folder = setting.scratch / f"overload-{setting.name}"
    with serve(setting, command, tasks) as server:
        check_server(setting, server, tasks)
        saturate(setting, server, tasks, mix, warmup, folder / "warm")
        capacity = saturate(setting, server, tasks, mix, warmup, folder / "capacity")
        console.print(f"overload: {TIMES * capacity:.1f} requests/s for {seconds:g} s, twice what can be answered")
        requests = itertools.islice(demand(setting.texts, tasks, mix, seed=3), BODIES)
        before = len(server.memory)
        load = open_load(server.port, requests, TIMES * capacity, seconds, folder / "run")
        memory = [size for _, size in server.memory[before:]]
        alive = server.alive
        if alive:
            check_server(setting, server, tasks)
    calm = memory[len(memory) // 10 :] or memory  # without the first tenth, in which the queue fills
    disorderly = {status: count for status, count in load.statuses.items() if status not in ORDERLY}
    figures = {
        "offered_per_second": round(TIMES * capacity, 3),
        "answered_per_second": round(load.rate(), 3),
        "started": load.started,
        "statuses": dict(load.statuses),
        "errors": dict(load.errors),
        "unanswered": load.unanswered,
        "disorderly": disorderly,
        "alive": alive,
        **load.percentiles(),
        "memory_last_over_first": round(calm[-1] / calm[0], 4) if calm else None,
        "memory_most_over_first": round(max(calm) / calm[0], 4) if calm else None,
    }
    console.print(figures)
    setting.book.add(
        "overload",
        **setting.facts(),
        mix=mix,
        tasks_loaded=tasks,
        seconds=seconds,
        capacity_http=round(capacity, 3),
        **figures,
        memory_bytes=memory,
        samples_ms=[round(sample, 1) for sample in load.milliseconds],
    )

"""What does a server answer to thousands of calls that break its own description? With 4xx, at once, and stays up.

The calls are made up by schemathesis from the server's OpenAPI, one endpoint after the other, each round from a seed of
its own.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from typing import Any

import requests
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis import strategies as st
from rich.progress import Progress

from load.latency import check_server, serve
from load.setting import Setting, console

TASKS = 8
ROUND = 100
"""Calls of an endpoint between two of another."""
HANGS = 10.0
"""Seconds after which a call counts as one that hangs."""
MOST_ROUNDS = 3
"""Times as many rounds as would do if each were whole: one in which nothing new can be made up is short."""


def measure(setting: Setting, command: Sequence[str], number: int) -> None:
    """Send wrong calls.

    Args:
        setting: What is measured on.
        command: Starts a server.
        number: Calls that must be answered with 4xx.
    """
    try:
        import schemathesis
    except ImportError:
        console.print("malformed is skipped: expected schemathesis, got none; install the extra dev on Python 3.11")
        return
    if setting.book.has("malformed", model=setting.name, wanted=number):
        return
    tasks = min(TASKS, setting.counts[-1])
    with serve(setting, command, tasks) as server:
        check_server(setting, server, tasks)
        schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
        operations = [found.ok() for found in schema.get_all_operations()]
        operations = [operation for operation in operations if operation.method.upper() == "POST"]
        sent = Sent()
        with Progress(console=console) as bar:
            ticks = bar.add_task("malformed", total=number)
            rounds = range(MOST_ROUNDS * (number // (ROUND * len(operations)) + 1))
            for seed, operation in ((seed, operation) for seed in rounds for operation in operations):
                if sent.refused < number and server.alive:
                    wrong = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
                    sent.make_up(operation.path, wrong, seed, min(ROUND, number - sent.refused))
                    bar.update(ticks, completed=min(number, sent.refused))
        figures = {**sent.figures(), "alive": server.alive}
        if server.alive:
            check_server(setting, server, tasks)
    console.print(figures)
    setting.book.add("malformed", **setting.facts(), wanted=number, **figures)


class Sent:
    """Calls that were made, and what came back."""

    def __init__(self) -> None:
        self._statuses: dict[str, Counter[str]] = {}
        self._slowest = 0.0
        self._session = requests.Session()

    @property
    def refused(self) -> int:
        """Calls that were answered with 4xx."""
        return sum(n for found in self._statuses.values() for status, n in found.items() if status.startswith("4"))

    def make_up(self, path: str, cases: st.SearchStrategy[Any], seed: int, number: int) -> None:
        """Send calls of an endpoint, as many as `number`, or as there are."""
        statuses = self._statuses.setdefault(path, Counter())

        @seeded(seed)
        @settings(
            max_examples=number,
            deadline=None,
            database=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=cases)
        def send(case: Any) -> None:
            began = time.monotonic()
            try:
                status = str(case.call(session=self._session, timeout=HANGS).status_code)
            except requests.Timeout:
                status = "hangs"
            except requests.ConnectionError:
                status = "connection lost"
            self._slowest = max(self._slowest, time.monotonic() - began)
            statuses[status] += 1

        send()

    def figures(self) -> dict[str, Any]:
        """Return what is recorded."""
        total: Counter[str] = sum(self._statuses.values(), Counter())
        return {
            "sent": total.total(),
            "statuses": dict(sorted(total.items())),
            "statuses_by_endpoint": {path: dict(sorted(found.items())) for path, found in self._statuses.items()},
            "server_errors": sum(n for status, n in total.items() if status.startswith("5")),
            "unanswered": total["hangs"] + total["connection lost"],
            "slowest_ms": round(self._slowest * 1000, 1),
        }

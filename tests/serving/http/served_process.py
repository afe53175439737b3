"""`peft-aot serve` as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

import peft_aot


class ServedProcess:
    """A server that was started.

    Attributes:
        process: It.
        url: Where it answers, with a slash at the end.
    """

    def __init__(self, process: subprocess.Popen[str], url: str) -> None:
        self.process, self.url = process, url

    def tasks(self) -> set[str]:
        """Return the names of its tasks."""
        return {task["name"] for task in requests.get(f"{self.url}v1/tasks", timeout=30).json()["tasks"]}

    def ready(self) -> bool:
        """Return whether it says that it is ready."""
        return requests.get(f"{self.url}readyz", timeout=30).status_code == 200


def wait(condition: Callable[[], bool]) -> None:
    """Wait for a minute at most until something holds."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


@contextmanager
def served_process(model: Path, tasks: Path) -> Iterator[ServedProcess]:
    """Start a server that watches a folder of tasks, wait until it is ready, and kill it at the end."""
    environment = {**os.environ, "PYTHONPATH": str(Path(peft_aot.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", "from peft_aot.cli.app import main; main()", "serve", "--port", "0", "--watch"]
    command += ["--model", str(model), "--tasks", str(tasks)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            served = ServedProcess(process, process.stdout.readline().split()[-1])
            wait(served.ready)
            yield served
        finally:
            process.kill()

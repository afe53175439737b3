"""The server as users start it: a process of its own, watched from outside."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from peft_aot.serving import Request

PATIENCE = 600
"""Seconds until a server with many tasks must be ready."""


class NoServer(RuntimeError):
    """The server did not start."""


class Server:
    """A server with tasks; a context manager.

    Args:
        command: What starts one; `--model`, `--tasks` and `--port` are added.
        model: The backbone.
        tasks: Folder whose subfolders are the tasks.

    Attributes:
        port: Where it listens.
        memory: (seconds since it was ready, bytes resident) once a second, its child processes counted.
    """

    def __init__(self, command: Sequence[str], model: Path, tasks: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self._arguments = [*command, "--model", str(model), "--tasks", str(tasks), "--port", str(self.port)]
        self.memory: list[tuple[float, int]] = []
        self._stopped = threading.Event()

    def __enter__(self) -> Server:
        self._log = tempfile.TemporaryFile("w+")
        environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
        try:
            self._process = subprocess.Popen(self._arguments, stdout=self._log, stderr=self._log, env=environment)
        except OSError as error:
            raise NoServer(f"expected {self._arguments[0]} to start, got {error}") from error
        end = time.monotonic() + PATIENCE
        while not self._ready():
            if not self.alive or time.monotonic() > end:
                self.__exit__()
                raise NoServer(f"expected a server to be ready within {PATIENCE} s, got {self._said()}")
            time.sleep(0.2)
        self._watch = threading.Thread(target=self._sample, daemon=True)
        self._watch.start()
        return self

    def __exit__(self, *failure: object) -> None:
        self._stopped.set()
        if self.alive:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self._process.poll() is None

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()[-500:].strip() or "nothing"

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/readyz", timeout=5) as reply:
                return bool(reply.status == 200)
        except OSError:
            return False

    def _sample(self) -> None:
        process, began = psutil.Process(self._process.pid), time.monotonic()
        while not self._stopped.wait(1):
            try:
                family = [process, *process.children(recursive=True)]
                self.memory.append((time.monotonic() - began, sum(one.memory_info().rss for one in family)))
            except psutil.NoSuchProcess:
                continue

    def ask(self, request: Request) -> dict[str, Any]:
        """Return the one result of a question."""
        body = json.dumps({"task": request.task, "text": request.text}).encode()
        kind = {"Content-Type": "application/json"}
        call = urllib.request.Request(f"http://127.0.0.1:{self.port}/v1/classify", body, kind)
        with urllib.request.urlopen(call, timeout=60) as reply:
            result: dict[str, Any] = json.load(reply)["results"][0]
        return result

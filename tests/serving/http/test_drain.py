"""A server that is told to stop answers what it has accepted."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests

import peft_aot
from peft_aot.serving.http.auth import Keys
from peft_aot.serving.http.running import serve
from peft_aot.serving.http.settings import Settings
from serving.fake_engine import FakeEngine

SCRIPT = Path(__file__).with_name("draining_server.py")
CALLS = 300


@contextmanager
def server(seconds: float, delay: float) -> Iterator[tuple[subprocess.Popen[str], str]]:
    environment = {**os.environ, "PYTHONPATH": str(Path(peft_aot.__file__).parents[1])}
    command = [sys.executable, str(SCRIPT), str(seconds), str(delay)]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().strip()
        finally:
            process.kill()


def ask(url: str, outcomes: list[str]) -> None:
    try:
        response = requests.post(f"{url}v1/classify", json={"task": "sentiment", "text": "good"}, timeout=60)
        outcomes.append(str(response.status_code))
    except requests.RequestException as error:
        outcomes.append(type(error).__name__)


def test_what_was_accepted_is_answered() -> None:
    with server(seconds=0.01, delay=0) as (process, url):
        outcomes: list[str] = []
        threads = [threading.Thread(target=ask, args=(url, outcomes)) for _ in range(CALLS)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + 30
        while (arrived := requests.get(f"{url}v1/load", timeout=10).json()["queued"] + len(outcomes)) < CALLS - 1:
            assert time.monotonic() < end, arrived
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert len(outcomes) < CALLS  # or it would have had nothing left to do
        with pytest.raises(requests.ConnectionError):
            requests.get(f"{url}readyz", timeout=5)
        told, logged = process.communicate(timeout=60)
        for thread in threads:
            thread.join()
    assert Counter(outcomes) == {"200": CALLS}
    assert told.splitlines()[-1] == f"closed after {CALLS} answers"
    assert all(line.startswith("{") for line in logged.splitlines())


def test_callers_that_go_and_balancers_that_are_told_in_time() -> None:
    with server(seconds=0.5, delay=1.5) as (process, url):
        port = int(re.findall(r":(\d+)/", url)[0])
        head = b"POST /v1/classify HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 38\r\n\r\n"
        for _ in range(5):
            with socket.create_connection(("127.0.0.1", port)) as gone:
                gone.sendall(head + b'{"task": "sentiment", "text": "good"}  ')
        time.sleep(0.2)
        start = time.monotonic()
        outcomes: list[str] = []
        ask(url, outcomes)
        assert time.monotonic() - start < 1.5  # what nobody waited for was withdrawn, but for the one that was running
        process.send_signal(signal.SIGTERM)
        time.sleep(0.5)
        assert requests.get(f"{url}readyz", timeout=10).status_code == 503
        assert requests.get(f"{url}healthz", timeout=10).status_code == 200
        ask(url, outcomes)
        assert outcomes == ["200", "200"]
        _, logged = process.communicate(timeout=30)
    assert logged.count('"problem": "client_gone"') == 5


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(
            OSError, match=f"expected a free port {port} on 127.0.0.1, got: .*; choose another with --port"
        ):
            serve(FakeEngine(), Settings(), "127.0.0.1", port, print)


def test_it_does_not_start_where_others_could_load() -> None:
    with pytest.raises(ValueError, match="expected an admin key for loading adapters on 0.0.0.0"):
        serve(FakeEngine(), Settings(keys=Keys(b"api")), "0.0.0.0", 0, print)

"""A server that is killed while it loads: the next one has every task that is complete, and answers the same."""

from __future__ import annotations

import contextlib
import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

from served_models import Saved
from serving.http.served_process import ServedProcess, served_process

TEXT = "how far is rome"


def asked(served: ServedProcess, task: str) -> dict[str, Any]:
    answer = requests.post(f"{served.url}v1/classify", json={"task": task, "text": TEXT}, timeout=60)
    assert answer.status_code == 200, answer.text
    return dict(answer.json(), task="")


def load_over_and_over(served: ServedProcess, begun: threading.Event) -> None:
    """Let the server load a task under new names, until it is no more."""
    number = 0
    while True:
        body = {"lora_name": f"again{number}", "lora_path": "trec"}
        begun.set()
        assert requests.post(f"{served.url}v1/load_adapter", json=body, timeout=60).status_code == 200
        number += 1


@pytest.mark.parametrize("times", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_while_loading(times: int, saved: Callable[[str], Saved], tmp_path: Path) -> None:
    here = saved("bert")
    rng = random.Random(times)
    tasks = tmp_path / "tasks"
    shutil.copytree(here.tasks["trec"], tasks / "trec")
    complete = {"trec"}
    expected: dict[str, Any] = {}
    for number in range(times):
        with served_process(here.backbone, tasks) as served:
            assert served.tasks() == complete
            for task in complete:
                assert asked(served, task) == (expected or asked(served, "trec"))
            expected = asked(served, "trec")
            begun = threading.Event()

            def load(served: ServedProcess = served, begun: threading.Event = begun) -> None:
                with contextlib.suppress(requests.ConnectionError):
                    load_over_and_over(served, begun)

            loading = threading.Thread(target=load)
            loading.start()
            begun.wait(60)
            time.sleep(rng.uniform(0, 0.5))
            shutil.copytree(here.tasks["trec"], tasks / f"trec{number}")  # the watch sees it grow
            complete.add(f"trec{number}")
            time.sleep(rng.uniform(0, 0.5))
            served.process.send_signal(signal.SIGKILL)
            loading.join(60)
            assert not loading.is_alive()
            (tasks / f"part{number}").mkdir()  # what a copy that was killed leaves
            shutil.copy(here.tasks["trec"] / "adapter_config.json", tasks / f"part{number}")
    with served_process(here.backbone, tasks) as served:
        assert served.tasks() == complete
        assert all(asked(served, task) == expected for task in complete)

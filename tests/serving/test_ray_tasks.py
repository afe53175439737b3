"""A change of tasks returns when every replica has it, or says which has not. Without a cluster."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("ray", reason='Ray is not installed: pip install "peft_aot[ray]"')
pytest.importorskip("fastapi", reason='the server needs `pip install "peft_aot[serve]"`')

from ray.exceptions import ActorDiedError, RayTaskError  # noqa: E402

from peft_aot.serving import ray_tasks  # noqa: E402
from peft_aot.serving.ray_replica import ReplicaState  # noqa: E402
from peft_aot.serving.ray_tasks import ClusterTasks  # noqa: E402
from peft_aot.serving.wanted import Wanted, WantedTask  # noqa: E402

WANTED = Wanted(3, {"a": WantedTask("x/a", 3)})


def state(replica: str, failed: dict[str, str] | None = None) -> ReplicaState:
    return ReplicaState(replica, 1, 3, ["a"], failed or {}, 0, 0)


class Handle:
    """Of a deployment whose replicas answer one broadcast after the other as they are told."""

    def __init__(self, changes: list[Any], broadcasts: list[list[Any]]) -> None:
        self.changes, self.broadcasts = changes, broadcasts

    def options(self, method_name: str) -> Handle:
        return self

    def remote(self, *arguments: Any) -> Handle:
        return self

    def result(self, timeout_s: float) -> Any:
        outcome = self.changes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def broadcast(self, method: str, *arguments: Any) -> Handle:
        return self

    def results(self, timeout_s: float, return_exceptions: bool = False) -> list[Any]:
        return self.broadcasts.pop(0) if len(self.broadcasts) > 1 else self.broadcasts[0]


Start = Callable[..., None]


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch) -> Start:
    def begin(changes: list[Any], broadcasts: list[list[Any]], running: int = 2) -> None:
        handle = Handle(changes, broadcasts)
        deployment = SimpleNamespace(replica_states={"RUNNING": running})
        application = SimpleNamespace(deployments={"peft_aot": deployment})
        monkeypatch.setattr(ray_tasks.serve, "status", lambda: SimpleNamespace(applications={"default": application}))
        monkeypatch.setattr(ray_tasks.serve, "get_deployment_handle", lambda name, app: handle)

    return begin


def test_it_waits_for_every_running_replica(start: Start) -> None:
    died = ActorDiedError()
    start([WANTED], [[state("r1"), died], [state("r1")], [state("r2"), state("r1")]])
    assert ClusterTasks().load("a", "x/a") == ["r1", "r2"]


def test_a_replica_that_dies_while_it_is_asked_is_not_the_last(start: Start) -> None:
    start([ActorDiedError(), WANTED], [[state("r1"), state("r2")]])
    assert ClusterTasks().unload("a") == ["r1", "r2"]


def test_a_replica_that_does_not_get_it_in_time(start: Start) -> None:
    start([WANTED], [[state("r1"), TimeoutError()]])
    message = "expected all 2 replicas to have version 3 of the tasks within 0.2 s, got 1; they go on by themselves"
    with pytest.raises(TimeoutError, match=message):
        ClusterTasks(timeout=0.2).load("a", "x/a")


def test_a_replica_that_cannot_load_it(start: Start) -> None:
    start([WANTED], [[state("r1"), state("r2", {"a": "OSError: gone"})]])
    message = "expected the adapter of task 'a' to load on every replica, got OSError: gone on replica r2; see that"
    with pytest.raises(RuntimeError, match=message):
        ClusterTasks().load("a", "x/a")


def test_no_replica_has_time(start: Start) -> None:
    start([TimeoutError("Timed out")], [])
    with pytest.raises(TimeoutError, match="expected a replica of the application 'default' to load 'a' within 60 s"):
        ClusterTasks().load("a", "x/a")


def test_what_a_replica_raises_is_raised(start: Start) -> None:
    own = TimeoutError("expected tasks.json to be free")
    start([RayTaskError("load", "traceback", own).as_instanceof_cause()], [])
    with pytest.raises(TimeoutError, match="^traceback$"):  # Ray shows where it was raised
        ClusterTasks().load("a", "x/a")


def test_no_such_application(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    start([], [])
    with pytest.raises(ValueError, match="expected the name of a running application, got 'defualt'; did you mean"):
        ClusterTasks("defualt").load("a", "x/a")
    monkeypatch.setattr(ray_tasks.serve, "status", lambda: SimpleNamespace(applications={}))
    with pytest.raises(ValueError, match="got 'default'; there is none, start one with `serve run`"):
        ClusterTasks().states()

"""The engine on Ray Serve, two replicas: same answers, shared batches, tasks that reach both, and a death that costs
nothing to who asks again."""

from __future__ import annotations

import importlib
import inspect
import os
import random
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from peft_aot.serving import Classification, Embedding, Engine, MultiLabel, Regression, Request, Tags, UnknownTask
from served_models import TEXTS, Saved, save_task

ray = pytest.importorskip("ray", reason='Ray is not installed: pip install "peft_aot[ray]"')
pytest.importorskip("fastapi", reason='the server needs `pip install "peft_aot[serve]"`')

import httpx2 as httpx  # noqa: E402
from ray import serve  # noqa: E402
from ray.serve.handle import DeploymentHandle  # noqa: E402
from ray.serve.schema import ServeDeploySchema  # noqa: E402

from peft_aot.serving.follower import TaskUnavailable  # noqa: E402
from peft_aot.serving.ray_app import Arguments, ClusterTasks, app, load_adapter, unload_adapter  # noqa: E402
from peft_aot.serving.wanted import TasksFolder  # noqa: E402

pytestmark = pytest.mark.xdist_group("ray")  # one Ray at a time: each takes all cores

KINDS = ("trec", "topics", "score", "names", "vectors", "sentiment")
NAME = "tasks-app"
PATIENCE = 90.0
DOCS = Path(__file__).parents[2] / "docs"


class Cluster:
    """A running application.

    Attributes:
        saved: Backbone and adapters that its tasks were copied from.
        folder: Its tasks folder.
        url: Of its proxy.
    """

    def __init__(self, saved: Saved, folder: Path, url: str) -> None:
        self.saved, self.folder, self.url = saved, folder, url
        self.tasks = ClusterTasks(NAME, PATIENCE)

    @property
    def handle(self) -> DeploymentHandle[Any]:
        return serve.get_deployment_handle("peft_aot", NAME)

    def ask(self, request: Request) -> Any:
        return self.handle.options(method_name="ask").remote(request).result(timeout_s=PATIENCE)

    def ask_everywhere(self, request: Request) -> list[Any]:
        """The answer, or what is raised, of every replica."""
        return self.handle.broadcast("ask", request).results(timeout_s=PATIENCE, return_exceptions=True)

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return httpx.post(self.url + path, json=body, headers=headers, timeout=PATIENCE)

    def wait_for_replicas(self, count: int = 2, unlike: frozenset[int] = frozenset()) -> None:
        end = time.monotonic() + PATIENCE
        while True:
            states = self.tasks.states()
            if len(states) == count and not unlike & {state.pid for state in states}:
                return
            assert time.monotonic() < end, states
            time.sleep(0.2)


@pytest.fixture(scope="module")
def cluster(saved: Callable[[str], Saved]) -> Iterator[Cluster]:
    bert = saved("bert")
    with (
        tempfile.TemporaryDirectory(prefix="t-", ignore_cleanup_errors=True) as place,
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setenv("RAY_TMPDIR", place)  # else "auto" would mean this cluster to the whole machine
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("PEFT_AOT_ADMIN_KEY", "secret")
        folder = Path(place, "tasks")
        for kind in KINDS:
            shutil.copytree(bert.tasks[kind], folder / kind)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            port = unused.getsockname()[1]
        ray.init(
            num_cpus=2, include_dashboard=False, object_store_memory=100 * 2**20, log_to_driver=False, _temp_dir=place
        )
        try:
            serve.start(proxy_location="HeadOnly", http_options={"host": "127.0.0.1", "port": port})
            arguments = Arguments.model_validate(
                {
                    "model": str(bert.backbone),
                    "tasks": str(folder),
                    "precision": "fp32",
                    "limits": {"wait": 0.05},
                    "http": {"loading": True},
                }
            )
            built = app(arguments)
            deployment = built._bound_deployment.options(  # as a Serve configuration does
                num_replicas=2, ray_actor_options={"num_cpus": 0.2}, health_check_period_s=1
            )
            serve.run(deployment.bind(arguments, ClusterTasks), name=NAME, route_prefix="/")
            running = Cluster(Saved(bert.backbone, dict(bert.tasks)), folder, f"http://127.0.0.1:{port}")
            running.wait_for_replicas()
            yield running
        finally:
            serve.shutdown()
            ray.shutdown()


def numbers(answer: Any) -> Any:
    """What of an answer may be rounded."""
    if isinstance(answer, Embedding):
        return answer.vector
    if isinstance(answer, Tags):
        return [word.score for word in answer.words]
    return [answer.value] if isinstance(answer, Regression) else list(answer.scores.values())


def names(answer: Any) -> Any:
    """What of an answer may not differ at all."""
    if isinstance(answer, Tags):
        return [(word.label, word.start, word.end) for word in answer.words]
    return getattr(answer, "label", None), getattr(answer, "labels", None)


def check_same(found: Any, expected: Any) -> None:
    assert type(found) is type(expected) and names(found) == names(expected)
    np.testing.assert_allclose(numbers(found), numbers(expected), atol=1e-4)


def here(saved: Saved, requests: list[Request]) -> list[Any]:
    """The answers of an engine in this process."""
    with Engine(saved.backbone, precision="fp32", device="cpu") as engine:
        for task in {request.task for request in requests}:
            engine.add_task(task, saved.tasks[task])
        return engine.answer(requests)


def test_mixed_tasks_are_answered_as_by_an_engine_here(cluster: Cluster) -> None:
    chosen = random.Random(0)
    requests = [Request(chosen.choice(KINDS), chosen.choice(TEXTS)) for _ in range(60)]
    asked = cluster.handle.options(method_name="ask")
    responses = [asked.remote(request) for request in requests]
    answers = [response.result(timeout_s=PATIENCE) for response in responses]
    assert {type(answer) for answer in answers} == {Classification, MultiLabel, Regression, Tags, Embedding}
    for answer, expected in zip(answers, here(cluster.saved, requests), strict=True):
        check_same(answer, expected)


def test_batches_are_shared_between_tasks_on_both_replicas(cluster: Cluster) -> None:
    before = {state.replica: state for state in cluster.tasks.states()}
    requests = [Request(KINDS[i % len(KINDS)], TEXTS[0]) for i in range(60)]
    with ThreadPoolExecutor(60) as threads:  # every replica is asked all: Serve might choose one for all of them
        assert all(len(answers) == 2 for answers in threads.map(cluster.ask_everywhere, requests))
    after = {state.replica: state for state in cluster.tasks.states()}
    assert after.keys() == before.keys() and len(after) == 2
    for replica, state in after.items():
        batches, mixed = state.batches - before[replica].batches, state.mixed - before[replica].mixed
        assert 0 < mixed <= batches < 60, "fewer batches than requests, and of several tasks"


def test_http_answers_each_or_says_what_is_wrong_with_it(cluster: Cluster) -> None:
    asked = [{"task": "trec", "text": TEXTS[2]}, {"task": "trek", "text": "x"}, {"task": "score", "text": " "}]
    response = cluster.post("/v1/batch", {"requests": [*asked, {"task": "names", "text": TEXTS[1]}]})
    assert response.status_code == 200, response.text
    results = response.json()["results"]
    [expected] = here(cluster.saved, [Request("trec", TEXTS[2])])
    assert results[0]["result"]["label"] == expected.label
    assert results[0]["result"]["score"] == pytest.approx(expected.score, abs=1e-4)
    assert results[1]["error"]["type"] == "unknown_task" and "did you mean 'trec'?" in results[1]["error"]["message"]
    assert results[2]["error"]["type"] == "invalid_request" and "expected text, got" in results[2]["error"]["message"]
    assert results[3]["result"]["words"]
    pair = {"task": "names", "texts": [["one", "two"]]}
    assert cluster.post("/v1/tag", pair).status_code == 422
    assert cluster.post("/v1/classify", {"task": "nothing", "texts": ["a"]}).status_code == 404


def test_an_unknown_task_is_an_error_of_its_own(cluster: Cluster) -> None:
    with pytest.raises(UnknownTask, match="expected the name of a task, got 'trek'; did you mean 'trec'?"):
        cluster.ask(Request("trek", "how far"))
    assert isinstance(cluster.ask(Request("__base__", "how far")), Embedding)


def test_changes_of_tasks_reach_both_replicas(cluster: Cluster, tmp_path: Path) -> None:
    request = Request("new", TEXTS[0])
    assert all(isinstance(answer, UnknownTask) for answer in cluster.ask_everywhere(request))
    first = save_task(cluster.saved.backbone, "trec", tmp_path / "first", 41)
    replicas = load_adapter("new", first, app=NAME, timeout=PATIENCE)
    assert len(replicas) == 2 and replicas == sorted(state.replica for state in cluster.tasks.states())
    answers = cluster.ask_everywhere(request)
    cluster.saved.tasks["new"] = first
    assert len(answers) == 2
    for answer in answers:
        check_same(answer, here(cluster.saved, [request])[0])

    save_task(cluster.saved.backbone, "trec", first, 42)  # the same folder, written anew
    load_adapter("new", first, app=NAME, timeout=PATIENCE)
    replaced = cluster.ask_everywhere(request)
    for answer in replaced:
        check_same(answer, here(cluster.saved, [request])[0])
        assert not np.allclose(numbers(answer), numbers(answers[0]), atol=1e-3)

    assert len(unload_adapter("new", app=NAME, timeout=PATIENCE)) == 2
    assert all(isinstance(answer, UnknownTask) for answer in cluster.ask_everywhere(request))
    with pytest.raises(UnknownTask, match="expected the name of a task to unload, got 'new'; "):
        unload_adapter("new", app=NAME)


def test_what_does_not_load_changes_nothing(cluster: Cluster, tmp_path: Path) -> None:
    before = TasksFolder(cluster.folder).read()
    with pytest.raises((FileNotFoundError, ValueError), match="adapter_config.json"):
        load_adapter("broken", tmp_path / "nothing", app=NAME)
    assert TasksFolder(cluster.folder).read() == before
    assert all(isinstance(answer, UnknownTask) for answer in cluster.ask_everywhere(Request("broken", "a")))


def test_tasks_are_loaded_over_http_with_the_admin_key(cluster: Cluster) -> None:
    body = {"lora_name": "again", "lora_path": "trec"}
    assert cluster.post("/v1/load_adapter", body).status_code == 401
    answer = cluster.post("/v1/load_adapter", body, Authorization="Bearer secret")
    assert answer.status_code == 200, answer.text
    [expected] = here(cluster.saved, [Request("trec", TEXTS[0])])
    for found in cluster.ask_everywhere(Request("again", TEXTS[0])):
        check_same(found, expected)
    gone = cluster.post("/v1/unload_adapter", {"lora_name": "again"}, Authorization="Bearer secret")
    assert gone.status_code == 200, gone.text
    assert all(isinstance(answer, UnknownTask) for answer in cluster.ask_everywhere(Request("again", "a")))


def test_a_replica_that_was_not_told_looks_when_it_is_asked(cluster: Cluster) -> None:
    folder = TasksFolder(cluster.folder)
    with folder.changing() as wanted:  # as another replica does it, before it tells the rest
        folder.write(wanted.with_task("late", "trec"))
    body = {"requests": [{"task": "late", "text": TEXTS[0]}]}
    [result] = cluster.post("/v1/batch", body).json()["results"]
    assert "result" in result, result
    for found in cluster.ask_everywhere(Request("late", TEXTS[0])):
        assert isinstance(found, Classification)
    unload_adapter("late", app=NAME, timeout=PATIENCE)


def test_an_adapter_that_vanished_costs_its_own_task_only(cluster: Cluster) -> None:
    folder = TasksFolder(cluster.folder)
    with folder.changing() as wanted:
        folder.write(wanted.with_task("lost", "/nowhere/lost"))
    for found in cluster.ask_everywhere(Request("lost", "a")):
        assert isinstance(found, TaskUnavailable) and "expected the adapter of task 'lost' to load, got" in str(found)
    response = cluster.post("/v1/classify", {"task": "lost", "texts": ["a"]})
    assert response.status_code == 503 and response.headers["Retry-After"] == "10", response.text
    assert isinstance(cluster.ask(Request("trec", "a")), Classification)
    unload_adapter("lost", app=NAME, timeout=PATIENCE)


def test_a_killed_replica_costs_nothing_to_who_asks_again(cluster: Cluster, tmp_path: Path) -> None:
    added = save_task(cluster.saved.backbone, "trec", cluster.folder / "added", 43)
    load_adapter("added", added, app=NAME, timeout=PATIENCE)
    cluster.saved.tasks["added"] = added
    victim = cluster.tasks.states()[0].pid
    requests = [Request((*KINDS, "added")[i % 7], TEXTS[i % len(TEXTS)]) for i in range(300)]
    expected = here(cluster.saved, requests)
    retried: list[int] = []

    def ask(client: httpx.Client, request: Request) -> dict[str, Any]:
        body = {"requests": [{"task": request.task, "text": request.text}]}
        end = time.monotonic() + PATIENCE
        while True:
            try:
                response = client.post(cluster.url + "/v1/batch", json=body)
                if response.status_code == 200:
                    return response.json()["results"][0]
                retried.append(response.status_code)
                assert response.status_code >= 500 and time.monotonic() < end, response.text
            except httpx.TransportError as error:
                retried.append(-1)
                assert time.monotonic() < end, error
            time.sleep(0.1)

    with httpx.Client(timeout=PATIENCE) as client, ThreadPoolExecutor(8) as pool:
        answers = [pool.submit(ask, client, request) for request in requests]
        while sum(answer.done() for answer in answers) < 40:
            time.sleep(0.005)
        os.kill(victim, signal.SIGKILL)
        found = [answer.result() for answer in answers]
    for request, answer, right in zip(requests, found, expected, strict=True):
        assert answer["task"] == request.task and "result" in answer, answer
        if isinstance(right, Classification):
            assert answer["result"]["score"] == pytest.approx(right.score, abs=1e-4)
    cluster.wait_for_replicas(unlike=frozenset({victim}))
    for state in cluster.tasks.states():
        assert {*KINDS, "added"} <= set(state.tasks), "a new replica is ready when it has every task"
    for answer in cluster.ask_everywhere(Request("added", TEXTS[0])):
        check_same(answer, here(cluster.saved, [Request("added", TEXTS[0])])[0])
    unload_adapter("added", app=NAME, timeout=PATIENCE)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tasks": "/nowhere"}, "expected the absolute path of a folder of adapters, got '/nowhere'; make the folder"),
        ({"tasks": "tasks"}, "expected the absolute path of a folder of adapters, got 'tasks'"),
        ({"model": ""}, "model"),
        ({"placement": "disk"}, "placement"),
        ({"memory_budget": -1}, "memory_budget"),
        ({"limits": {"wiat": 1}}, "expected the name of a limit, got 'wiat'; did you mean 'wait'?"),
        ({"limits": {"queue": 0}}, "expected a positive number of queue, got 0; choose one above zero"),
        ({"replicas": 2}, "replicas"),
        ({"http": {"port": 1}}, "port"),
    ],
)
def test_arguments_that_are_no_good(tmp_path: Path, changed: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError) as refused:
        Arguments.model_validate({"model": "backbone", "tasks": str(tmp_path), **changed})
    assert message in str(refused.value)


def test_loading_over_http_needs_an_admin_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PEFT_AOT_ADMIN_KEY", raising=False)
    arguments = Arguments(model="backbone", tasks=tmp_path, http={"loading": True})
    with pytest.raises(ValueError, match="expected an admin key for loading adapters on 0.0.0.0"):
        app(arguments)


def test_a_call_asks_no_more_than_the_queue_takes_of_one_task(tmp_path: Path) -> None:
    arguments = Arguments(model="backbone", tasks=tmp_path, limits={"queue": 10})
    assert arguments.http.settings(arguments.tasks, arguments.limits).max_texts == 5


def test_serve_is_told_the_type_of_the_arguments() -> None:
    [argument] = inspect.signature(app).parameters.values()
    assert argument.annotation is Arguments


def test_the_configuration_in_the_docs_is_one(tmp_path: Path) -> None:
    told = ServeDeploySchema.model_validate(yaml.safe_load((DOCS / "serve-config.yaml").read_text()))
    [application] = told.applications
    module, _, name = application.import_path.partition(":")
    assert getattr(importlib.import_module(module), name) is app
    Arguments.model_validate({**application.args, "tasks": str(tmp_path)})
    assert [deployment.name for deployment in application.deployments] == ["peft_aot"]


def test_without_ray_the_message_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.delitem(sys.modules, "peft_aot.serving.ray_app")
    with pytest.raises(ImportError, match=r'expected the extras "ray" and "serve", got no Ray .*; do: pip install'):
        importlib.import_module("peft_aot.serving.ray_app")

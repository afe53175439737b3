"""Probes, metrics, load, logs, settings and the documentation."""

from __future__ import annotations

import json
import logging
import math
import re
import time
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from peft_aot.serving.http import metrics as metrics_module
from peft_aot.serving.http.app import make_app
from peft_aot.serving.http.logs import LOGGER, JsonLines, fields
from peft_aot.serving.http.metrics import Metrics
from peft_aot.serving.http.recent import WINDOW, Recent
from peft_aot.serving.http.settings import Settings
from serving.fake_engine import BatchRecord, FakeEngine, save, task
from serving.http.conftest import MakeClient

ASKED = {"task": "sentiment", "text": "x"}


def value(client: TestClient, line: str) -> float:
    found = re.search(rf"^{re.escape(line)} (\S+)$", client.get("/metrics").text, re.MULTILINE)
    return float(found[1]) if found else math.nan


def test_alive_and_ready(client: TestClient) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").json() == {"status": "ready"}
    client.app.state.readiness.draining = True  # type: ignore[attr-defined]
    assert client.get("/healthz").status_code == 200
    response = client.get("/readyz")
    assert response.status_code == 503
    assert response.json()["error"] == {"type": "draining", "message": "the server is stopping; ask another"}


def test_ready_once_the_tasks_are_loaded(make_client: MakeClient, tmp_path: Path, monkeypatch: Any) -> None:
    engine = FakeEngine(())
    save(tmp_path / "one")
    add = engine.add_task
    monkeypatch.setattr(engine, "add_task", lambda name, adapter: time.sleep(0.3) or add(name, adapter))
    client = make_client(engine, tasks=tmp_path)
    response = client.get("/readyz")
    assert (response.status_code, response.json()["error"]["type"]) == (503, "loading")
    response = client.post("/v1/classify", json={"task": "one", "text": "x"})
    assert (response.status_code, response.json()["error"]["type"]) == (503, "loading"), "it may yet come"
    assert client.get("/healthz").status_code == 200
    end = time.monotonic() + 10
    while client.get("/readyz").status_code != 200:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert client.post("/v1/classify", json={"task": "one", "text": "x"}).status_code == 200


def test_the_end_of_the_application_closes_the_engine() -> None:
    engine = FakeEngine()
    with TestClient(make_app(engine, Settings())):
        assert not engine.closed
    assert engine.closed


def test_calls_are_counted(client: TestClient) -> None:
    for _ in range(3):
        client.post("/v1/classify", json={"task": "sentiment", "texts": ["a", "b"]})
    client.post("/v1/classify", json={"task": "nope", "text": "x"})
    client.get("/nowhere")
    client.get("/no%0Awhere/else")
    assert value(client, 'aot_http_requests_total{endpoint="/v1/classify",status="200"}') == 3
    assert value(client, 'aot_http_requests_total{endpoint="/v1/classify",status="404"}') == 1
    assert value(client, 'aot_http_requests_total{endpoint="other",status="404"}') == 2
    assert value(client, 'aot_http_errors_total{endpoint="/v1/classify",type="unknown_task"}') == 1
    assert value(client, 'aot_http_request_seconds_count{endpoint="/v1/classify"}') == 4
    assert value(client, 'aot_texts_total{task="sentiment"}') == 6
    assert "nope" not in client.get("/metrics").text
    assert client.get("/metrics").headers["content-type"].startswith("text/plain")


def test_batches_are_counted(client: TestClient) -> None:
    client.post("/v1/classify", json=ASKED)
    assert value(client, "aot_batch_examples_sum") == 1
    assert value(client, "aot_batch_tasks_count") == 1
    assert value(client, "aot_tokens_total") == 5
    assert value(client, "aot_padded_tokens_total") == 8
    assert value(client, 'aot_cache_hits_total{level="memory"}') == 3
    assert value(client, "aot_queue_wait_seconds_count") == 1
    assert value(client, "aot_queued_texts") == 0
    assert value(client, "aot_tasks") == 5


def test_labels_of_tasks_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "TASKS", 3)
    engine = FakeEngine(tuple(task(f"t{number}") for number in range(5)))
    metrics = Metrics(engine)
    for number in range(5):
        metrics.count_texts(f"t{number}", 1)
    text = metrics.render().decode()
    assert [name for name in ("t0", "t1", "t2", "t3", "t4") if f'{{task="{name}"}}' in text] == ["t0", "t1", "t2"]
    assert 'aot_texts_total{task="other"} 2.0' in text
    engine.remove_task("t1")
    metrics.count_texts("t4", 1)
    text = metrics.render().decode()
    assert [name for name in ("t0", "t1", "t2", "t3", "t4") if f'{{task="{name}"}}' in text] == ["t0", "t2", "t4"]


def test_applications_share_no_metrics(make_client: MakeClient) -> None:
    one, other = make_client(), make_client()
    one.post("/v1/classify", json=ASKED)
    assert "aot_texts_total{" in one.get("/metrics").text
    assert "aot_texts_total{" not in other.get("/metrics").text


def test_load_is_of_the_last_seconds() -> None:
    engine, now = FakeEngine(), [100.0]
    recent = Recent(engine, clock=lambda: now[0])
    assert recent.load().latency == {"p50": 0.0, "p95": 0.0, "p99": 0.0}
    for number in range(10):
        engine.observers[0](BatchRecord(4, 2, 40, 50, 0.5, (0.0, 0.1, 0.1, 0.1 * number), {}))
    load = recent.load()
    assert load.texts_per_second == pytest.approx(40 / WINDOW)
    assert load.batches_per_second == pytest.approx(10 / WINDOW)
    assert (load.batch_examples, load.batch_tasks, load.queued, load.tasks) == (4, 2, 0, 5)
    assert load.latency["p50"] == pytest.approx(0.6)
    assert 0.6 < load.latency["p95"] < load.latency["p99"] <= 1.4
    now[0] += WINDOW + 1
    assert recent.load().texts_per_second == 0


def test_load_over_http(client: TestClient) -> None:
    client.post("/v1/classify", json=ASKED)
    assert client.get("/v1/load").json()["texts_per_second"] == pytest.approx(1 / WINDOW)


def test_logs_are_json_and_hold_no_texts(client: TestClient, caplog: Any) -> None:
    with caplog.at_level(logging.INFO, logger=LOGGER):
        response = client.post("/v1/classify", json={"task": "sentiment", "text": "s3cret-words"})
        client.post("/v1/classify?q=s3cret-words", json={"task": "s3cret-words", "text": "s3cret-words"})
        client.get("/s3cret-words")
        client.get("/healthz")
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if record.name == LOGGER]
    assert [(line["endpoint"], line["status"], line["texts"]) for line in lines] == [
        ("/v1/classify", 200, 1),
        ("/v1/classify", 404, 1),
        ("other", 404, 0),
    ]
    assert lines[0]["request"] == response.headers["x-request-id"]
    assert lines[1]["problem"] == "unknown_task"
    assert lines[0]["level"] == "info"
    assert "s3cret-words" not in json.dumps(lines)


def test_a_log_line_with_a_traceback_is_one_line() -> None:
    try:
        raise ValueError("bad\nthing")
    except ValueError as error:
        record = logging.LogRecord("x", logging.ERROR, "", 0, "failed %s", ("so",), (ValueError, error, None))
    record.__dict__.update(fields(path=Path("a")))
    line = JsonLines().format(record)
    assert "\n" not in line
    assert json.loads(line)["message"] == "failed so"
    assert json.loads(line)["path"] == "a"
    assert "bad" in json.loads(line)["traceback"]


@pytest.mark.parametrize("name", ["max_body", "max_texts", "max_characters", "max_timeout", "body_timeout", "watch"])
def test_settings_that_allow_nothing(name: str) -> None:
    for number in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match=r"expected a positive number of .*, got .*; choose one above zero"):
            Settings(**{name: number})


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="expected a timeout of at most 300 s, got 400; raise max_timeout too"):
        Settings(timeout=400)
    with pytest.raises(ValueError, match="expected drain_delay of at least 0 seconds, got -1; choose another"):
        Settings(drain_delay=-1)


def test_a_folder_of_tasks_that_is_none(make_client: MakeClient, tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"expected a folder of tasks, got .*, which is none; create it or name"
    ):
        make_client(tasks=tmp_path / "none")


def test_every_example_of_the_documentation_works(make_client: MakeClient, tmp_path: Path) -> None:
    save(tmp_path / "moods")
    client = make_client(adapters=(tmp_path,))
    paths = client.get("/openapi.json").json()["paths"]
    asked = 0
    for path, methods in paths.items():
        for method, operation in methods.items():
            body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("example")
            response = client.request(method.upper(), path, json=body)
            assert response.status_code == 200, (path, response.text)
            assert '"error"' not in response.text
            asked += body is not None
    assert asked == 6
    assert set(paths) == {
        "/v1/classify", "/v1/tag", "/v1/embed", "/v1/batch", "/v1/tasks", "/v1/load_adapter", "/v1/unload_adapter",
        "/v1/load", "/metrics", "/healthz", "/readyz",
    }  # fmt: skip


def test_examples_ask_tasks_that_are_served(make_client: MakeClient) -> None:
    client = make_client(FakeEngine((task("topics"), task("places", "tokens"))))
    paths = client.get("/openapi.json").json()["paths"]
    example = paths["/v1/batch"]["post"]["requestBody"]["content"]["application/json"]["example"]
    assert [each["task"] for each in example["requests"]] == ["topics", "places", "__base__"]
    assert client.post("/v1/batch", json=example).status_code == 200

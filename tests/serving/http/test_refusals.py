"""Calls that are refused: with the right status, in one shape, and without the text that was sent."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient

from peft_aot.serving.http.app import make_app
from peft_aot.serving.http.settings import Settings
from serving.fake_engine import FakeEngine
from serving.http.conftest import MakeClient

SECRET = "s3cret-words"
ONE = "expected exactly one of text, texts and pairs"


def refused(response: Any, status: int, kind: str, message: str = "") -> None:
    assert response.status_code == status, response.text
    assert list(response.json()) == ["error"]
    error = response.json()["error"]
    assert sorted(error) == ["message", "type"]
    assert error["type"] == kind
    assert message in error["message"]
    assert SECRET not in response.text


@pytest.mark.parametrize(
    ("path", "body", "status", "kind", "message"),
    [
        ("classify", {"task": "sentiment"}, 422, "invalid_request", f"at body: {ONE}, got none"),
        ("classify", {"task": "sentiment", "text": SECRET, "texts": ["a"]}, 422, "invalid_request", "text and texts"),
        ("classify", {"text": SECRET}, 422, "invalid_request", "body.task: this field is missing"),
        ("classify", {"task": "sentiment", "text": SECRET, SECRET: 1}, 422, "invalid_request", "not known"),
        ("classify", {"task": "sentiment", "texts": []}, 422, "invalid_request", "body.texts: List should have"),
        ("classify", {"task": "sentiment", "texts": [SECRET, 1]}, 422, "invalid_request", "body.texts.1"),
        ("classify", {"task": "sentiment", "texts": SECRET}, 422, "invalid_request", "body.texts"),
        ("classify", {"task": "sentiment", "pairs": [[SECRET]]}, 422, "invalid_request", "body.pairs.0"),
        ("classify", {"task": "sentiment", "text": ""}, 422, "invalid_request", "send one with words"),
        ("classify", {"task": SECRET * 20, "text": "x"}, 422, "invalid_request", "body.task"),
        ("classify", {"task": "sentimnt", "text": SECRET}, 404, "unknown_task", "did you mean 'sentiment'?"),
        ("classify", {"task": "zzz", "text": SECRET}, 404, "unknown_task", "choose one of sentiment, moods"),
        ("classify", {"task": "names", "text": SECRET}, 422, "wrong_kind", "is for /v1/tag; send it there"),
        ("classify", {"task": "__base__", "text": SECRET}, 422, "wrong_kind", "for /v1/embed"),
        ("tag", {"task": "sentiment", "text": SECRET}, 422, "wrong_kind", "for /v1/classify"),
        ("embed", {"task": "moods", "text": SECRET}, 422, "wrong_kind", "for /v1/classify"),
        ("tag", {"task": "names", "pairs": [[SECRET, "b"]]}, 422, "invalid_request", "got a pair"),
        ("batch", {"requests": []}, 422, "invalid_request", "body.requests"),
        ("batch", {"requests": [{"task": "sentiment"}]}, 422, "invalid_request", "body.requests.0.text"),
        ("classify", {"task": "sentiment", "text": "x", "timeout": 0}, 422, "invalid_request", "body.timeout"),
        ("classify", {"task": "sentiment", "text": "x", "timeout": "1"}, 422, "invalid_request", "body.timeout"),
        ("classify", {"task": "sentiment", "text": "x", "timeout": 1e9}, 422, "invalid_request", "at most 300 s"),
    ],
)  # fmt: skip
def test_bodies_that_ask_nothing(
    client: TestClient, path: str, body: Any, status: int, kind: str, message: str
) -> None:
    refused(client.post(f"/v1/{path}", json=body), status, kind, message)


@pytest.mark.parametrize(
    ("body", "statuses"),
    [
        (b"", {422}),
        (b"{", {400}),
        (b"null", {422}),
        (b"[]", {422}),
        (b"\xff\xfe", {400}),
        (b'{"task": "sentiment", "text": "\xff"}', {400}),
        (b'{"task": "sentiment", "text": "\\ud800"}', {422}),
        (b'{"task": "sentiment", "\\ud800": "x"}', {422}),
        (b'{"task": "\\ud800", "text": "x"}', {422}),
        (b'{"task": "sentiment", "text": "a\\u0000b"}', {200}),
        (b'{"task": "sentiment\\u0000", "text": "x"}', {404}),
        (b'{"task": "sentiment", "text": "x", "timeout": NaN}', {422}),
        (b'{"task": "sentiment", "text": "x", "timeout": Infinity}', {422}),
        (b'{"task": "sentiment", "text": "x", "timeout": -1}', {422}),
        (b'{"task": "sentiment", "text": "x", "timeout": 1e400}', {422}),
        (b'{"task": "sentiment", "text": "x", "timeout": ' + b"9" * 5000 + b"}", {400}),
        (b'{"task": "sentiment", "text": "x", "timeout": ' + b"9" * 4000 + b"}", {422}),
        (b'{"task": "sentiment", "text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", {400}),
        (b'{"task": "sentiment", "text": ' + b"[" * 900 + b"]" * 900 + b"}", {422}),
        (b'{"task": "sentiment", "texts": [' + b"0," * 300_000 + b"0]}", {422}),
        (b"{" + b",".join(b'"k%d": 0' % number for number in range(60_000)) + b"}", {422}),
        (b'{"task": "sentiment", "task": "length", "text": "x"}', {200}),
        ("\ufeff{}".encode(), {400, 422}),
    ],
    ids=lambda value: repr(value)[:50],
)  # fmt: skip
def test_nasty_bodies(client: TestClient, body: bytes, statuses: set[int]) -> None:
    start = time.perf_counter()
    response = client.post("/v1/classify", content=body)
    assert response.status_code in statuses, response.text
    if response.status_code != 200:
        assert list(response.json()) == ["error"]
    assert time.perf_counter() - start < 3


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "image/json", "", "a/b/c"])
def test_other_types_of_body(client: TestClient, content_type: str) -> None:
    body = json.dumps({"task": "sentiment", "text": "x"})
    response = client.post("/v1/classify", content=body, headers={"Content-Type": content_type})
    refused(response, 415, "unsupported_media_type", "expected a JSON body, got another type or none")


def test_bodies_that_are_compressed(client: TestClient) -> None:
    body = gzip.compress(json.dumps({"task": "sentiment", "text": "x"}).encode())
    headers = {"Content-Type": "application/json", "Content-Encoding": "gzip"}
    response = client.post("/v1/classify", content=body, headers=headers)
    refused(response, 415, "unsupported_media_type", "expected a body that is not compressed")


def test_probes_answer_head(client: TestClient) -> None:
    for path in ("/", "/page.js", "/healthz", "/readyz", "/metrics"):
        assert client.head(path).status_code == 200, path


def test_json_with_a_suffix_or_parameters_is_json(client: TestClient) -> None:
    body = json.dumps({"task": "sentiment", "text": "x"})
    for content_type in ("application/json; charset=utf-8", "application/vnd.api+json", "Application/JSON"):
        response = client.post("/v1/classify", content=body, headers={"Content-Type": content_type})
        assert response.status_code == 200, content_type


def test_other_methods_and_paths(client: TestClient) -> None:
    refused(client.get("/v1/classify"), 405, "method_not_allowed", "the header Allow names it")
    refused(client.request("TRACE", "/v1/tasks"), 405, "method_not_allowed")
    assert client.get("/v1/classify").headers["allow"] == "POST"
    refused(client.post(f"/v1/{SECRET}"), 404, "not_found", "expected the path of an endpoint")


def test_a_body_that_says_it_is_too_large(make_client: MakeClient) -> None:
    client = make_client(max_body=1000)
    refused(client.post("/v1/classify", content=b" " * 1001), 413, "too_large", "at most 1,000 bytes")
    answer = client.post("/v1/classify", content=b"{}", headers={"Content-Length": "9" * 30})
    refused(answer, 413, "too_large")


def test_a_body_that_turns_out_too_large(make_client: MakeClient) -> None:
    sent = 0

    def parts() -> Iterator[bytes]:
        nonlocal sent
        for _ in range(1000):
            sent += 1
            yield b" " * 100

    client = make_client(max_body=1000)
    refused(client.post("/v1/classify", content=parts()), 413, "too_large")
    exactly = json.dumps({"task": "sentiment", "text": "x"}).encode().ljust(1000)
    assert client.post("/v1/classify", content=iter([exactly[:500], exactly[500:]])).status_code == 200


def test_a_body_that_does_not_come() -> None:
    app = make_app(FakeEngine(), Settings(body_timeout=0.05))
    path = "/v1/classify"
    scope = {
        "type": "http", "method": "POST", "path": path, "raw_path": path.encode(), "query_string": b"",
        "headers": [(b"content-type", b"application/json")],
    }  # fmt: skip
    sent: list[Any] = []

    async def receive() -> Any:
        await asyncio.sleep(0.02)
        return {"type": "http.request", "body": b" ", "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(scope, receive, send))
    assert sent[0]["status"] == 408
    assert b"expected the body within 0.05 s, got a part of it; send it faster" in sent[1]["body"]


def test_too_many_texts_and_too_long_ones(make_client: MakeClient) -> None:
    client = make_client(max_texts=2, max_characters=5)
    message = "expected at most 2 texts in a call, got 3"
    body: Any = {"task": "sentiment", "texts": ["a"] * 3}
    refused(client.post("/v1/classify", json=body), 422, "invalid_request", message)
    body = {"requests": [{"task": "sentiment", "text": "a"}] * 3}
    refused(client.post("/v1/batch", json=body), 422, "invalid_request", message)
    for pair in ([SECRET, "a"], ["a", SECRET]):
        response = client.post("/v1/classify", json={"task": "sentiment", "pairs": [["a", "b"], pair]})
        refused(response, 422, "invalid_request", "expected a text of at most 5 characters, got 12; shorten it")


def test_overload(make_client: MakeClient) -> None:
    engine = FakeEngine(room=2)
    engine.go.clear()
    client = make_client(engine)
    response = client.post("/v1/classify", json={"task": "sentiment", "texts": ["a"] * 10})
    refused(response, 429, "overloaded", "ask again later")
    assert response.headers["retry-after"] == "1"
    engine.go.set()
    time.sleep(0.1)
    assert engine.answered <= 1  # one may have been running; the others of the call were withdrawn


def test_a_mixed_call_under_overload(make_client: MakeClient) -> None:
    engine = FakeEngine(room=2)
    engine.go.clear()
    client = make_client(engine)
    threading.Timer(0.2, engine.go.set).start()
    asked = [{"task": "sentiment", "text": "a"}] * 10
    results = client.post("/v1/batch", json={"requests": asked}).json()["results"]
    assert {result["error"]["type"] for result in results if "error" in result} == {"overloaded"}
    assert sum("result" in result for result in results) in (2, 3)


def test_deadlines(make_client: MakeClient, caplog: Any) -> None:
    engine = FakeEngine()
    engine.go.clear()
    client = make_client(engine, timeout=0.05)
    body: dict[str, Any] = {"task": "sentiment", "text": SECRET}
    for asked in (body, {**body, "timeout": 0.01}):
        response = client.post("/v1/classify", json=asked)
        refused(response, 504, "deadline_exceeded", "allow more time or send less")
    (result,) = client.post("/v1/batch", json={"requests": [body], "timeout": 0.01}).json()["results"]
    assert result["error"]["type"] == "deadline_exceeded"
    engine.go.set()
    time.sleep(0.1)
    assert engine.answered <= 1  # what nobody waited for was withdrawn
    assert "never retrieved" not in caplog.text


def test_a_closed_engine(make_client: MakeClient) -> None:
    engine = FakeEngine()
    client = make_client(engine)
    engine.close()
    response = client.post("/v1/classify", json={"task": "sentiment", "text": SECRET})
    refused(response, 503, "unavailable")


def test_what_fails_inside(make_client: MakeClient, monkeypatch: Any, caplog: Any) -> None:
    engine = FakeEngine()
    monkeypatch.setattr(engine, "_answer", lambda request: 1 / 0)
    client = make_client(engine)
    response = client.post("/v1/classify", json={"task": "sentiment", "text": SECRET})
    refused(response, 500, "internal", "something went wrong here; the server's log says what")
    assert "ZeroDivisionError" in caplog.text
    assert SECRET not in caplog.text

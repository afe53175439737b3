"""Every endpoint that answers texts, for every kind of task."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serving.fake_engine import EVERY_KIND, FakeEngine, task
from serving.http.conftest import MakeClient

POSITIVE = {"label": "positive", "score": 0.9, "scores": {"negative": pytest.approx(0.1), "positive": 0.9}}
NEGATIVE = {"label": "negative", "score": 0.8, "scores": {"negative": 0.8, "positive": 0.2}}


def post(client: TestClient, path: str, status: int = 200, **body: Any) -> Any:
    response = client.post(path, json=body)
    assert response.status_code == status, response.text
    return response.json()


def test_one_text(client: TestClient) -> None:
    assert post(client, "/v1/classify", task="sentiment", text="a good film") == {
        "task": "sentiment",
        "results": [POSITIVE],
    }


def test_texts_are_answered_in_the_order_asked(client: TestClient) -> None:
    texts = ["good" if number % 3 else "bad" for number in range(50)]
    answer = post(client, "/v1/classify", task="sentiment", texts=texts)
    assert [result["label"] for result in answer["results"]] == [
        "positive" if text == "good" else "negative" for text in texts
    ]


def test_pairs(client: TestClient) -> None:
    answer = post(client, "/v1/classify", task="length", pairs=[["ab", "c"], ["abc", "de"]])
    assert answer["results"] == [{"value": 4.0}, {"value": 6.0}]


def test_any_labels(client: TestClient) -> None:
    answer = post(client, "/v1/classify", task="moods", text="good")
    assert answer["results"] == [{"labels": ["glad"], "scores": {"sad": 0.1, "glad": 0.9, "calm": 0.3}}]


def test_words_and_entities(client: TestClient) -> None:
    (result,) = post(client, "/v1/tag", task="names", text="in Zürich")["results"]
    assert result == {
        "words": [
            {"label": "O", "start": 0, "end": 2, "score": 0.75},
            {"label": "B-NAME", "start": 3, "end": 9, "score": 0.75},
        ],
        "entities": [{"label": "NAME", "start": 3, "end": 9, "text": "Zürich", "score": 0.75}],
    }


@pytest.mark.parametrize("asked", [{}, {"task": "__base__"}, {"task": "vectors"}])
def test_embeddings(client: TestClient, asked: dict[str, str]) -> None:
    answer = post(client, "/v1/embed", **asked, texts=["a", "b"])
    assert answer == {
        "task": asked.get("task", "__base__"),
        "width": 4,
        "results": [{"embedding": [0.5] * 4}, {"embedding": [0.5] * 4}],
    }


def test_tasks_are_mixed_in_one_call(client: TestClient) -> None:
    asked = [
        {"task": "sentiment", "text": "good"},
        {"task": "sentimant", "text": "good"},
        {"task": "names", "text": "Ada"},
        {"task": "names", "text": "Ada", "pair": "Bo"},
        {"task": "__base__", "text": "x"},
        {"task": "length", "text": "x", "pair": "yz"},
        {"task": "sentiment", "text": ""},
    ]
    results = post(client, "/v1/batch", requests=asked)["results"]
    assert [result["task"] for result in results] == [each["task"] for each in asked]
    assert results[0] == {"task": "sentiment", "result": POSITIVE}
    assert results[1]["error"]["type"] == "unknown_task"
    assert "did you mean 'sentiment'?" in results[1]["error"]["message"]
    assert results[2]["result"]["entities"][0]["text"] == "Ada"
    assert results[3]["error"] == {
        "type": "invalid_request",
        "message": "expected one text, got a pair; send one text",
    }
    assert results[4]["result"] == {"embedding": [0.5] * 4}
    assert results[5]["result"] == {"value": 4.0}
    assert results[6]["error"]["type"] == "invalid_request"


def test_what_fails_in_a_mixed_call_by_itself_is_its_own(make_client: MakeClient, monkeypatch: Any) -> None:
    engine = FakeEngine()
    answer = engine._answer
    monkeypatch.setattr(engine, "_answer", lambda request: 1 / 0 if request.text == "crash" else answer(request))
    asked = [{"task": "sentiment", "text": "crash"}, {"task": "sentiment", "text": "good"}]
    results = post(make_client(engine), "/v1/batch", requests=asked)["results"]
    assert results[0]["error"] == {
        "type": "internal",
        "message": "something went wrong here; the server's log says what",
    }
    assert results[1]["result"] == POSITIVE


def test_many_unknown_names_are_answered_quickly(make_client: MakeClient) -> None:
    engine = FakeEngine(tuple(task(f"task-{number:04}-{number * 7919:x}") for number in range(1000)))
    client = make_client(engine)
    asked = [{"task": f"tesk-{number:04}", "text": "x"} for number in range(256)]
    start = time.perf_counter()
    results = post(client, "/v1/batch", requests=asked)["results"]
    assert time.perf_counter() - start < 2
    assert all(result["error"]["type"] == "unknown_task" for result in results)
    assert max(len(result["error"]["message"]) for result in results) < 300


def test_a_number_that_is_none(make_client: MakeClient, monkeypatch: Any) -> None:
    from peft_aot.serving.request import Regression

    engine = FakeEngine()
    monkeypatch.setattr(engine, "_answer", lambda request: Regression(float("nan")))
    assert post(make_client(engine), "/v1/classify", task="length", text="x")["results"] == [{"value": None}]


def test_tasks_are_listed(client: TestClient) -> None:
    answer = client.get("/v1/tasks").json()
    assert answer["backbone"] == "fake-backbone"
    assert [each["name"] for each in answer["tasks"]] == sorted(each.name for each in EVERY_KIND)
    by_name = {each["name"]: each for each in answer["tasks"]}
    assert by_name["names"] == {
        "name": "names",
        "kind": "tokens",
        "endpoint": "/v1/tag",
        "labels": ["O", "B-NAME"],
        "max_length": 128,
        "nbytes": 1000,
        "has_table": False,
    }


def test_calls_are_answered_side_by_side(make_client: MakeClient) -> None:
    client, answers = make_client(), []

    def ask(number: int) -> None:
        answers.append(post(client, "/v1/classify", task="length", text="x" * number)["results"][0]["value"] == number)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(1, 30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == [True] * 29

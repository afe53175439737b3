"""`peft-aot serve`: the command, with a fake engine for its options and with a real one from end to end."""

from __future__ import annotations

import builtins
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests

import peft_aot.serving.engine
from peft_aot.cli.app import main
from peft_aot.serving.http import running
from peft_aot.serving.http.auth import ADMIN_KEY, API_KEY, Keys
from peft_aot.serving.limits import Limits
from served_models import Saved
from serving.fake_engine import FakeEngine
from serving.http.served_process import served_process, wait


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the command would have started."""
    seen: dict[str, Any] = {}

    def engine(model: str, **options: Any) -> FakeEngine:
        seen.update(model=model, **options)
        return seen.setdefault("engine", FakeEngine())

    def serve(engine: Any, settings: Any, host: str, port: int, ready: Callable[[str], None]) -> None:
        seen.update(settings=settings, host=host, port=port)
        ready("http://here/")

    monkeypatch.setattr(peft_aot.serving.engine, "Engine", engine)
    monkeypatch.setattr(running, "serve", serve)
    for name in (API_KEY, ADMIN_KEY):
        monkeypatch.delenv(name, raising=False)
    return seen


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        main(["serve", *arguments])
    return int(ended.value.code or 0)


def test_defaults(started: dict[str, Any], tmp_path: Path, capsys: Any) -> None:
    assert run("--model", "m", "--tasks", str(tmp_path)) == 0
    assert capsys.readouterr().out == "page, endpoints and /docs: http://here/\n"
    settings = started["settings"]
    assert (started["model"], started["host"], started["port"]) == ("m", "127.0.0.1", 8000)
    assert (started["placement"], started["memory_budget"], started["limits"]) == ("auto", "auto", Limits())
    assert (settings.tasks, settings.adapters, settings.watch) == (tmp_path, (tmp_path,), None)
    assert (settings.keys, settings.loading, settings.hub) == (Keys(), True, ())
    assert started["engine"].closed


def test_options(started: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "admin").write_text("admin-key\n")
    monkeypatch.setenv(API_KEY, "api-key")
    options = (
        f"--model m --tasks {tmp_path} --host 0.0.0.0 --port 0 --watch --adapters {tmp_path}/more --allow-hub org/one "
        f"--allow-hub org2/* --admin-key-file {tmp_path}/admin --placement mmap --memory-budget 1000 "
        "--batch-tokens 512 --batch-examples 8 --queue 99 --timeout 5 --max-body 1000 --drain-delay 2 --precision bf16"
    )
    assert run(*options.split()) == 0
    settings = started["settings"]
    assert settings.keys == Keys(b"api-key", b"admin-key")
    assert settings.watch is not None
    assert settings.adapters == (tmp_path / "more", tmp_path)
    assert settings.hub == ("org/one", "org2/*")
    assert (settings.timeout, settings.max_body, settings.drain_delay) == (5, 1000, 2)
    assert (started["placement"], started["memory_budget"]) == ("mmap", 1000)
    assert started["limits"] == Limits(batch_tokens=512, batch_examples=8, queue=99)
    assert started["precision"] == "bf16"
    assert settings.max_texts == Limits(queue=99).of_one_task == 50, "one task may have half of the queue"


def test_it_does_not_start_where_others_could_load(started: dict[str, Any], capsys: Any) -> None:
    assert run("--model", "m", "--host", "0.0.0.0") == 2
    assert "expected an admin key for loading adapters on 0.0.0.0" in capsys.readouterr().err
    assert "engine" not in started
    assert run("--model", "m", "--host", "0.0.0.0", "--no-loading") == 0


def test_without_the_extra_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    original = builtins.__import__

    def without(name: str, *arguments: Any, **named: Any) -> Any:
        if name.startswith("peft_aot.serving.http"):
            raise ModuleNotFoundError("No module named 'fastapi'", name="fastapi")
        return original(name, *arguments, **named)

    monkeypatch.setattr(builtins, "__import__", without)
    assert run("--model", "m") == 2
    message = 'expected fastapi to be installed, got none; install it with `pip install "peft_aot[serve]"`'
    assert message in capsys.readouterr().err


def test_from_end_to_end(saved: Callable[[str], Saved], tmp_path: Path) -> None:
    here = saved("bert")
    for name in ("trec", "names", "vectors"):
        shutil.copytree(here.tasks[name], tmp_path / name)
    with served_process(here.backbone, tmp_path) as served:
        assert served.tasks() == {"trec", "names", "vectors"}
        questions = [
            {"task": task, "text": "how far is rome"} for task in ("trec", "names", "vectors", "__base__", "trek")
        ]
        results = requests.post(f"{served.url}v1/batch", json={"requests": questions}, timeout=60).json()["results"]
        assert results[0]["result"]["label"] in {"number", "place", "person", "thing", "reason"}
        assert len(results[1]["result"]["words"]) == 4
        assert sum(x * x for x in results[2]["result"]["embedding"]) == pytest.approx(1, abs=1e-3)
        assert "did you mean 'trec'?" in results[4]["error"]["message"]
        for text in ("", "  ", "\0", "a" * 90_000, "\u202e\U0001f600"):
            answer = requests.post(f"{served.url}v1/classify", json={"task": "trec", "text": text}, timeout=60)
            assert answer.status_code in {200, 422}, answer.text
        shutil.copytree(here.tasks["sentiment"], tmp_path / "sentiment")
        wait(lambda: "sentiment" in served.tasks())
        body = {"lora_name": "again", "lora_path": "sentiment"}
        assert requests.post(f"{served.url}v1/load_adapter", json=body, timeout=60).status_code == 200
        assert "again" in served.tasks()
        shutil.rmtree(tmp_path / "sentiment")
        wait(lambda: "sentiment" not in served.tasks())
        assert 'aot_texts_total{task="trec"}' in requests.get(f"{served.url}metrics", timeout=30).text
        served.process.send_signal(signal.SIGTERM)
        served.process.wait(60)

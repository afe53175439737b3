"""Loading and unloading tasks over HTTP, and from where."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from peft_aot.serving.http.adapters import Adapters
from peft_aot.serving.http.problems import Problem
from serving.fake_engine import FakeEngine, save
from serving.http.conftest import MakeClient

NEITHER = "expected a folder inside an allowed one or an allowed hub id, got neither"


@pytest.fixture
def allowed(tmp_path: Path) -> Path:
    save(tmp_path / "secret")
    return save(tmp_path / "allowed" / "good").parent


def post(client: TestClient, endpoint: str, status: int = 200, **body: Any) -> Any:
    response = client.post(endpoint, json=body)
    assert response.status_code == status, response.text
    return response.json()


@pytest.mark.parametrize("lora", ["", "lora_"])
def test_load_ask_replace_unload(make_client: MakeClient, allowed: Path, lora: str) -> None:
    engine = FakeEngine()
    client = make_client(engine, adapters=(allowed,))
    body = {"lora_name": "new", "lora_path": "good"}
    assert post(client, f"/v1/load_{lora}adapter", **body) == {"message": "Success: task 'new' is served."}
    assert post(client, "/v1/classify", task="new", text="good")["results"][0]["label"] == "positive"
    error = post(client, f"/v1/load_{lora}adapter", 409, **body)["error"]
    assert error["type"] == "task_exists"
    assert "expected a new name, got 'new', which is served; send load_inplace: true" in error["message"]
    post(client, f"/v1/load_{lora}adapter", **body, load_inplace=True)
    post(client, f"/v1/unload_{lora}adapter", lora_name="new", lora_int_id=3)
    assert engine.calls == [("add", "new"), ("replace", "new"), ("remove", "new")]
    error = post(client, f"/v1/unload_{lora}adapter", 404, lora_name="sentimnt")["error"]
    assert "did you mean 'sentiment'?" in error["message"]


def test_short_names_and_whole_paths(make_client: MakeClient, allowed: Path) -> None:
    client = make_client(adapters=(allowed,))
    post(client, "/v1/load_adapter", name="new", path=str(allowed / "good"))
    post(client, "/v1/unload_adapter", name="new")


def test_loading_can_be_switched_off(make_client: MakeClient, allowed: Path) -> None:
    client = make_client(adapters=(allowed,), loading=False)
    post(client, "/v1/load_adapter", 404, lora_name="new", lora_path="good")
    assert "/v1/load_adapter" not in client.get("/openapi.json").json()["paths"]


@pytest.mark.parametrize("name", ["", "__base__", "a b", "../x", "x" * 129, "a\n", "\u00e4"])
def test_names_that_are_no_good(make_client: MakeClient, allowed: Path, name: str) -> None:
    client = make_client(adapters=(allowed,))
    assert post(client, "/v1/load_adapter", 422, lora_name=name, lora_path="good")["error"]["type"] == "invalid_request"


def test_a_broken_adapter(make_client: MakeClient, allowed: Path) -> None:
    engine = FakeEngine()
    save(allowed / "broken", weights=b"broken")
    client = make_client(engine, adapters=(allowed,))
    error = post(client, "/v1/load_adapter", 422, lora_name="new", lora_path="broken")["error"]
    assert error == {"type": "bad_adapter", "message": "incomplete metadata, file not fully covered"}
    assert "new" not in engine.tasks


@pytest.mark.parametrize(
    "path",
    [
        "../secret",
        "good/../../secret",
        "{outside}",
        "/etc",
        "/",
        ".",
        "..",
        "{allowed}",
        "none",
        "link",
        "loop",
        "good\0",
        "x" * 4000,
        "//etc//passwd",
        "~",
        "file:///etc",
    ],
)
def test_paths_that_lead_out(allowed: Path, path: str) -> None:
    os.symlink(allowed.parent / "secret", allowed / "link")
    os.symlink("loop", allowed / "loop")
    path = path.format(outside=allowed.parent / "secret", allowed=allowed)
    with pytest.raises(Problem, match=NEITHER) as caught:  # the same words whether there is such a file or not
        Adapters([allowed], []).find(path)
    assert caught.value.status == 403


def test_paths_that_stay_inside(allowed: Path) -> None:
    os.symlink(allowed / "good", allowed / "link")
    save(allowed / "deeper" / "one")
    adapters = Adapters([allowed.parent / "allowed"], [])
    for path in ("good", "./good", "deeper/../good", "link", str(allowed / "good"), str(allowed / "link")):
        assert adapters.find(path) == (allowed / "good").resolve()
    assert adapters.find("deeper/one") == (allowed / "deeper" / "one").resolve()


def test_an_allowed_folder_may_itself_be_a_link(allowed: Path) -> None:
    os.symlink(allowed, allowed.parent / "alias")
    assert Adapters([allowed.parent / "alias"], []).find("good") == (allowed / "good").resolve()


@pytest.mark.parametrize("target", ["secret/adapter_model.safetensors", "secret", "nothing"])
def test_files_that_are_links_out(allowed: Path, target: str) -> None:
    os.symlink(allowed.parent / target, allowed / "good" / "more")
    with pytest.raises(Problem, match="got a link out of it, 'more'; copy instead") as caught:
        Adapters([allowed], []).find("good")
    assert caught.value.kind == "bad_adapter"


def test_weights_that_are_a_link_out(allowed: Path) -> None:
    (allowed / "good" / "adapter_model.safetensors").unlink()
    os.symlink(allowed.parent / "secret" / "adapter_model.safetensors", allowed / "good" / "adapter_model.safetensors")
    with pytest.raises(Problem, match="got a link out of it, 'adapter_model.safetensors'"):
        Adapters([allowed], []).find("good")


def test_files_that_are_links_inside(allowed: Path) -> None:
    save(allowed / "other")
    os.symlink(allowed / "other" / "adapter_model.safetensors", allowed / "good" / "more")
    Adapters([allowed], []).find("good")


def test_pickles_are_not_read(allowed: Path) -> None:
    folder = allowed / "good"
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    with pytest.raises(Problem, match="expected adapter_model.safetensors in the adapter's folder, got none; save the"):
        Adapters([allowed], []).find("good")


def test_a_pipe_in_the_place_of_weights(allowed: Path) -> None:
    (allowed / "good" / "adapter_model.safetensors").unlink()
    os.mkfifo(allowed / "good" / "adapter_model.safetensors")
    with pytest.raises(Problem, match="expected adapter_model.safetensors in the adapter's folder, got none"):
        Adapters([allowed], []).find("good")


def test_hub_ids() -> None:
    adapters = Adapters([], ["org/one", "many/*"])
    for wanted in ("org/one", "many/one", "many/two.three-4_5"):
        assert adapters.find(wanted) == wanted
    for wanted in ("org/two", "org/one/more", "orgg/one", "many/", "many/..", "many/../x", "one", "Many/one", "many/*"):
        with pytest.raises(Problem, match=NEITHER):
            adapters.find(wanted)


def test_a_folder_with_the_name_of_a_hub_id_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path / "many" / "one")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Problem, match=NEITHER):
        Adapters([], ["many/*"]).find("many/one")


def test_a_path_too_long_for_any_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "many").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Problem, match=NEITHER):
        Adapters([], []).find("many/" + 300 * "x")


@pytest.mark.parametrize("entry", ["*", "org", "org/a*", "../x", "org/../x", "*/x", ""])
def test_hub_entries_that_are_no_good(entry: str) -> None:
    with pytest.raises(ValueError, match=r"expected a hub id as org/name or org/\*, got .*; write one of these"):
        Adapters([], [entry])

"""Who may call what."""

from __future__ import annotations

import hmac
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from peft_aot.serving.http.auth import ADMIN_KEY, API_KEY, Keys, check_exposure, is_loopback, read_keys
from serving.fake_engine import save
from serving.http.conftest import MakeClient

KEYS = Keys(b"api-key", b"admin-key")
ASKED = {"task": "sentiment", "text": "x"}
OPEN = ("/healthz", "/readyz", "/", "/page.css", "/page.js", "/docs", "/openapi.json")
KEYED = ("/v1/tasks", "/v1/load", "/metrics")


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def load(client: TestClient, **headers: str) -> Any:
    return client.post("/v1/load_adapter", json={"lora_name": "new", "lora_path": "new"}, headers=headers)


def test_without_keys_it_is_open(client: TestClient) -> None:
    assert client.post("/v1/classify", json=ASKED).status_code == 200
    assert [client.get(path).status_code for path in (*OPEN, *KEYED)] == [200] * (len(OPEN) + len(KEYED))


def test_what_needs_no_key(make_client: MakeClient) -> None:
    client = make_client(keys=KEYS)
    assert [client.get(path).status_code for path in OPEN] == [200] * len(OPEN)
    assert "sentiment" not in client.get("/openapi.json").text.replace('"task":"sentiment"', "")


@pytest.mark.parametrize("key", ["api-key", "admin-key"])
def test_each_key_opens_what_changes_nothing(make_client: MakeClient, key: str) -> None:
    client = make_client(keys=KEYS)
    assert [client.get(path, headers=bearer(key)).status_code for path in KEYED] == [200] * len(KEYED)
    assert client.post("/v1/classify", json=ASKED, headers=bearer(key)).status_code == 200
    assert client.get("/v1/tasks", headers={"Authorization": f"bearer  {key} "}).status_code == 200


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, "expected a key, got none; send the header 'Authorization: Bearer KEY'"),
        ({"Authorization": "Bearer "}, "expected a key, got none"),
        ({"Authorization": "Basic api-key"}, "expected a key, got none"),
        ({"Authorization": "api-key"}, "expected a key, got none"),
        ({"Authorization": "Bearer api-ke"}, "expected a valid key, got another; check the key you send"),
        ({"Authorization": "Bearer api-key2"}, "expected a valid key"),
        ({"Authorization": "Bearer \u00e4pi-key".encode("latin-1")}, "expected a valid key"),
    ],
)
def test_without_the_key_nothing_is_told(make_client: MakeClient, headers: Any, message: str) -> None:
    client = make_client(keys=KEYS)
    for response in (
        client.get("/v1/tasks", headers=headers),
        client.get("/metrics", headers=headers),
        client.post("/v1/classify", json=ASKED, headers=headers),
        client.post("/v1/classify", content=b"no json", headers=headers),  # the key comes first
        client.post("/v1/unload_adapter", json={"lora_name": "sentiment"}, headers=headers),
    ):
        assert response.status_code == 401
        assert response.headers["www-authenticate"] == "Bearer"
        assert response.json()["error"]["type"] == "unauthorized"
        assert message in response.json()["error"]["message"]


def test_loading_needs_the_admin_key(make_client: MakeClient, tmp_path: Path) -> None:
    save(tmp_path / "new")
    client = make_client(keys=KEYS, adapters=(tmp_path,))
    response = load(client, **bearer("api-key"))
    assert response.status_code == 403
    assert "expected the admin key, got the API key" in response.json()["error"]["message"]
    assert load(client, **bearer("admin-key")).status_code == 200


def test_an_admin_key_alone_closes_only_loading(make_client: MakeClient, tmp_path: Path) -> None:
    save(tmp_path / "new")
    client = make_client(keys=Keys(admin=b"admin-key"), adapters=(tmp_path,))
    assert client.post("/v1/classify", json=ASKED).status_code == 200
    assert load(client).status_code == 401
    assert load(client, **bearer("admin-key")).status_code == 200


def test_an_api_key_alone_closes_loading_too(make_client: MakeClient, tmp_path: Path) -> None:
    save(tmp_path / "new")
    client = make_client(keys=Keys(api=b"api-key"), adapters=(tmp_path,))
    assert load(client).status_code == 401
    assert load(client, **bearer("api-key")).status_code == 200


def test_keys_are_compared_in_constant_time(monkeypatch: pytest.MonkeyPatch) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr(hmac, "compare_digest", compare)
    KEYS.check("Bearer api-key", admin=False)
    assert compared == [(b"api-key", b"api-key")]


def test_keys_are_not_shown() -> None:
    assert repr(Keys(b"api-key")) == "Keys(api=***, admin=None)"


def test_keys_come_from_the_environment_or_files(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("from-file\n")
    environment = {API_KEY: "from-environment", ADMIN_KEY: "admin"}
    assert read_keys(environment={}) == Keys()
    assert read_keys(environment=environment) == Keys(b"from-environment", b"admin")
    assert read_keys(tmp_path / "key", environment=environment) == Keys(b"from-file", b"admin")
    assert read_keys(admin_file=tmp_path / "key", environment={}) == Keys(None, b"from-file")


@pytest.mark.parametrize("key", ["", "two words", "k\u00e9y", "line\nbreak"])
def test_keys_that_no_header_can_carry(key: str) -> None:
    with pytest.raises(ValueError, match=f"expected a key of printable ASCII .* in {API_KEY}, got something else"):
        read_keys(environment={API_KEY: key})


def test_the_same_key_twice() -> None:
    with pytest.raises(ValueError, match="expected an admin key of its own, got the API key again; choose two"):
        read_keys(environment={API_KEY: "key", ADMIN_KEY: "key"})


def test_nobody_else_may_load_without_an_admin_key() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check_exposure(host, Keys(), loading=True)
    for host in ("0.0.0.0", "::", "10.0.0.1", "example.org"):
        assert not is_loopback(host)
        check_exposure(host, Keys(b"api"), loading=False)
        check_exposure(host, KEYS, loading=True)
        with pytest.raises(ValueError, match="expected an admin key for loading .* got none; set PEFT_AOT_ADMIN_KEY"):
            check_exposure(host, Keys(b"api"), loading=True)

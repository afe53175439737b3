from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

pytest.importorskip("fastapi", reason='the server needs `pip install "peft_aot[serve]"`')
from fastapi.testclient import TestClient

from peft_aot.serving.http.app import make_app
from peft_aot.serving.http.settings import Settings
from serving.fake_engine import FakeEngine

MakeClient = Callable[..., TestClient]


@pytest.fixture
def make_client() -> Iterator[MakeClient]:
    """A client of a running application: of a fake engine and the settings that are named."""
    with ExitStack() as stack:

        def make(engine: FakeEngine | None = None, **settings: Any) -> TestClient:
            app = make_app(engine or FakeEngine(), Settings(**settings))
            return stack.enter_context(TestClient(app, headers={"Content-Type": "application/json"}))

        yield make


@pytest.fixture
def client(make_client: MakeClient) -> TestClient:
    return make_client()

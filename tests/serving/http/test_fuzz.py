"""Calls that schemathesis makes up from the application's own description: no 5xx, no hang, one shape of errors.

`FUZZ_EXAMPLES` says how many are made up for each endpoint.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis needs Python 3.11")
from hypothesis import HealthCheck, Phase, given, settings  # noqa: E402

from peft_aot.serving.http.app import make_app  # noqa: E402
from peft_aot.serving.http.settings import Settings  # noqa: E402
from serving.fake_engine import FakeEngine, save  # noqa: E402

FEW = 40
MANY = int(os.environ.get("FUZZ_EXAMPLES", "1000"))
SLOW = 2.0
PATHS = [
    "/v1/classify", "/v1/tag", "/v1/embed", "/v1/batch", "/v1/tasks", "/v1/load", "/v1/load_adapter",
    "/v1/unload_adapter", "/metrics", "/healthz",
]  # fmt: skip


class Lasting(FakeEngine):
    """Is not closed when an application ends: schemathesis starts and ends it several times."""

    def close(self, drain: bool = True, timeout: float | None = None) -> None:
        return None


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("adapters")
    save(folder / "new-task")
    app = make_app(Lasting(), Settings(adapters=(Path(folder),), timeout=1.0, max_timeout=1.0))
    return schemathesis.openapi.from_asgi("/openapi.json", app)


def fuzz(schema: Any, path: str, mode: Any, examples: int) -> set[int]:
    """Make calls up, check each answer, and return the statuses there were."""
    operation = next(each for each in schema.get_all_operations() if each.ok().path == path).ok()
    statuses: set[int] = set()

    @settings(
        max_examples=examples, deadline=None, database=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck), derandomize=True,
    )  # fmt: skip
    @given(case=operation.as_strategy(generation_mode=mode))
    def check(case: Any) -> None:
        start = time.perf_counter()
        response = case.call()
        assert time.perf_counter() - start < SLOW
        hurried = response.status_code == 504 and case.body.get("timeout", 1.0) < 1.0
        assert response.status_code < 500 or hurried, response.text
        if response.status_code >= 400:
            assert sorted(response.json()["error"]) == ["message", "type"]
        else:
            case.validate_response(response)
        statuses.add(response.status_code)

    check()
    return statuses


MODES = schemathesis.GenerationMode


@pytest.mark.parametrize("path", PATHS)
def test_calls_as_described(schema: Any, path: str) -> None:
    statuses = fuzz(schema, path, MODES.POSITIVE, FEW)
    assert statuses <= {200, 403, 404, 409, 422}


@pytest.mark.parametrize("path", [path for path in PATHS if "task" not in path and path.count("/") == 2][:4])
def test_calls_that_are_wrong(schema: Any, path: str) -> None:
    assert fuzz(schema, path, MODES.NEGATIVE, FEW) - {200}


@pytest.mark.slow
@pytest.mark.parametrize("path", PATHS)
def test_many_calls(schema: Any, path: str) -> None:
    fuzz(schema, path, MODES.POSITIVE, MANY)
    if path.endswith(("classify", "tag", "embed", "batch", "adapter")):
        fuzz(schema, path, MODES.NEGATIVE, MANY)

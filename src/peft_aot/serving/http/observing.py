"""Every call is timed, counted and logged, and none ends without an answer in the one shape of errors."""

from __future__ import annotations

import logging
import secrets
import time

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .logs import LOGGER, fields
from .metrics import OTHER, Metrics
from .problems import problem_of, respond

QUIET = frozenset({"/healthz", "/readyz", "/metrics", "/v1/load"})
log = logging.getLogger(LOGGER)


class Observing:
    """Middleware around all others.

    Args:
        app: What it is around.
        metrics: Told of every call.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a call on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = scope.setdefault("state", {})
        state["request_id"] = secrets.token_hex(8)
        status = 0

        async def observed(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], (b"x-request-id", state["request_id"].encode())]
            await send(message)

        start = time.perf_counter()
        try:
            await self._app(scope, receive, observed)
        except Exception as error:  # whatever it is, the caller gets an answer and the log the rest
            log.exception("a call failed", extra=fields(request=state["request_id"], endpoint=_endpoint(scope)))
            problem = problem_of(error)
            state["problem"] = problem.kind
            if status == 0:
                await respond(problem)(scope, receive, observed)
        seconds = time.perf_counter() - start
        endpoint = _endpoint(scope)
        self._metrics.count_call(endpoint, status, seconds, state.get("problem"))
        log.log(
            logging.DEBUG if endpoint in QUIET and status < 400 else logging.INFO,
            "call",
            extra=fields(
                request=state["request_id"],
                method=scope["method"] if scope["method"] in ("GET", "POST") else OTHER,
                endpoint=endpoint,
                status=status,
                seconds=round(seconds, 6),
                texts=state.get("texts", 0),
                problem=state.get("problem"),
            ),
        )


def _endpoint(scope: Scope) -> str:
    """The path as declared: what was sent may be anything."""
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) else OTHER

"""The endpoints for whoever keeps the server running: probes, metrics, load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fastapi import APIRouter, Response
from prometheus_client import CONTENT_TYPE_LATEST

from .guard import GuardedRoute
from .metrics import Metrics
from .problems import Problem
from .recent import Recent
from .schemas import Health, Load


@dataclass
class Readiness:
    """Whether a server should get calls.

    Attributes:
        loaded: The tasks to begin with are loaded.
        draining: It is about to stop.
    """

    loaded: bool = False
    draining: bool = False


def still_loading() -> Problem:
    """Return why a server that has just been started does not answer."""
    return Problem(503, "loading", "the tasks are being loaded; ask again soon", {"Retry-After": "1"})


def probe_routes(readiness: Readiness, errors: dict[int | str, Any]) -> APIRouter:
    """Make the probes, which need no key."""
    router = APIRouter(tags=["health"])

    @router.head("/healthz", include_in_schema=False)
    @router.get("/healthz")
    async def healthz() -> Health:
        """Say that the process is alive."""
        return Health(status="alive")

    @router.head("/readyz", include_in_schema=False)
    @router.get("/readyz", responses={503: errors[503]})
    async def readyz() -> Health:
        """Say whether to send calls here: 503 until the tasks are loaded, and while the server stops."""
        if readiness.draining:
            raise Problem(503, "draining", "the server is stopping; ask another")
        if not readiness.loaded:
            raise still_loading()
        return Health(status="ready")

    return router


def metrics_routes(metrics: Metrics, recent: Recent, errors: dict[int | str, Any]) -> APIRouter:
    """Make the endpoints that measure."""
    router = APIRouter(route_class=GuardedRoute, responses=errors, tags=["health"])

    @router.head("/metrics", include_in_schema=False)
    @router.get("/metrics", response_class=Response, responses={200: {"content": {"text/plain": {}}}})
    def all_metrics() -> Response:
        """Give all metrics in Prometheus' text format."""
        return Response(metrics.render(), media_type=CONTENT_TYPE_LATEST)

    @router.get("/v1/load")
    async def load() -> Load:
        """Say how busy the server has been in the last seconds."""
        return recent.load()

    return router

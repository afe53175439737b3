"""The application: an engine and settings in, endpoints out. Nothing is global."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import Depends, FastAPI
from fastapi.security import HTTPBearer

import peft_aot

from .answering import FindTasks, answering_routes, find_none
from .contract import Engine
from .examples import with_examples
from .health import Readiness, metrics_routes, probe_routes, still_loading
from .managing import listing_routes, loading_routes
from .metrics import Metrics
from .observing import Observing
from .page import page_routes
from .problems import HANDLED, answer_error
from .recent import Recent
from .schemas import ErrorBody
from .settings import Settings
from .watch import TaskFolder, Watcher

ERRORS = {
    400: "The body cannot be read.",
    401: "No key, or a wrong one.",
    403: "Not allowed.",
    404: "No task of that name.",
    408: "The body came too slowly.",
    409: "A task of that name is served.",
    413: "The body is too large.",
    415: "The body is not JSON.",
    422: "The body does not ask what this endpoint answers.",
    429: "Too busy; the header Retry-After says when to ask again.",
    503: "The server is starting or stopping.",
    504: "The timeout passed.",
}


def make_app(engine: Engine, settings: Settings, find_tasks: FindTasks = find_none) -> FastAPI:
    """Put an engine behind HTTP.

    The application loads the tasks of `settings.tasks` once it runs, and closes the engine, after it has answered what
    it has accepted, when it ends.

    Args:
        engine: Answers.
        settings: Limits and permissions.
        find_tasks: Where tasks may come from while they are asked for, see `answering_routes`.

    Raises:
        FileNotFoundError: `settings.tasks` is no folder.
        ValueError: An entry of `settings.hub` is no hub id.
    """
    metrics, recent, readiness = Metrics(engine), Recent(engine), Readiness()
    folder = None if settings.tasks is None else TaskFolder(engine, settings.tasks)

    @asynccontextmanager
    async def running(app: FastAPI) -> AsyncIterator[None]:
        watcher = None if folder is None else Watcher(folder, settings.watch, readiness)
        if watcher is None:
            readiness.loaded = True
        else:
            watcher.start()
        try:
            yield
        finally:
            readiness.draining = True
            if watcher is not None:
                await asyncio.to_thread(watcher.stop)
            await asyncio.to_thread(engine.close, drain=True, timeout=settings.drain_timeout)

    app = FastAPI(
        title="peft_aot",
        version=peft_aot.__version__,
        summary=f"Many tasks on one frozen backbone, {engine.backbone}.",
        lifespan=running,
        redoc_url=None,
        exception_handlers=dict.fromkeys(HANDLED, answer_error),
    )
    app.state.settings, app.state.readiness = settings, readiness
    app.add_middleware(Observing, metrics=metrics)
    errors: dict[int | str, Any] = {
        status: {"model": ErrorBody, "description": description} for status, description in ERRORS.items()
    }
    # only for the documentation: GuardedRoute checks the key, before the body is read
    keyed = [Depends(HTTPBearer(auto_error=False))] if settings.keys.api or settings.keys.admin else []
    find = finding(find_tasks, engine, readiness)
    app.include_router(answering_routes(engine, settings, metrics, errors, find), dependencies=keyed)
    app.include_router(listing_routes(engine, errors), dependencies=keyed)
    if settings.loading:
        app.include_router(loading_routes(engine, settings, errors), dependencies=keyed)
    app.include_router(metrics_routes(metrics, recent, errors), dependencies=keyed)
    app.include_router(probe_routes(readiness, errors))
    app.include_router(page_routes())
    _put_examples(app, engine, settings)
    return app


def finding(find_tasks: FindTasks, engine: Engine, readiness: Readiness) -> FindTasks:
    """Return `find_tasks`, but that while tasks are being loaded, one that is not there may yet come."""

    async def find(names: Collection[str]) -> Mapping[str, Exception]:
        found = dict(await find_tasks(names))
        if not readiness.loaded:
            found |= {name: still_loading() for name in names if name not in engine.tasks and name not in found}
        return found

    return find


def _put_examples(app: FastAPI, engine: Engine, settings: Settings) -> None:
    make_schema = app.openapi

    def schema() -> dict[str, Any]:
        # the documentation needs no key, so that with one it names no task
        return with_examples(make_schema(), {} if settings.keys.api else engine.tasks, settings.adapters)

    app.openapi = schema  # type: ignore[method-assign]

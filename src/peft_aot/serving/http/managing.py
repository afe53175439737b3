"""The endpoints that say and change what is served."""

from __future__ import annotations

import logging
import threading
from typing import Any

from fastapi import APIRouter

from peft_aot.serving.errors import EngineClosed

from .adapters import Adapters
from .checks import ENDPOINTS, unknown_task
from .contract import Engine
from .guard import AdminRoute, GuardedRoute
from .logs import LOGGER, fields
from .problems import Problem
from .schemas import Done, LoadAdapter, TaskDescription, TaskList, UnloadAdapter
from .settings import Settings

log = logging.getLogger(LOGGER)


def listing_routes(engine: Engine, errors: dict[int | str, Any]) -> APIRouter:
    """Make the endpoint that lists the tasks."""
    router = APIRouter(route_class=GuardedRoute, responses=errors, tags=["tasks"])

    @router.get("/v1/tasks")
    async def tasks() -> TaskList:
        """List the tasks that are served, by name."""
        return TaskList(
            backbone=engine.backbone,
            tasks=[
                TaskDescription(
                    name=name,
                    kind=task.kind,
                    endpoint=ENDPOINTS[task.kind],
                    labels=task.labels,
                    max_length=task.max_length,
                    nbytes=task.nbytes,
                    has_table=task.has_table,
                )
                for name, task in sorted(engine.tasks.items())
            ],
        )

    return router


def loading_routes(engine: Engine, settings: Settings, errors: dict[int | str, Any]) -> APIRouter:
    """Make the endpoints that load and unload tasks, under names of this server's and of vLLM's."""
    router = APIRouter(route_class=AdminRoute, responses=errors, tags=["tasks"])
    adapters = Adapters(settings.adapters, settings.hub)
    one_at_a_time = threading.Lock()

    @router.post("/v1/load_adapter")
    @router.post("/v1/load_lora_adapter", include_in_schema=False)
    def load_adapter(asked: LoadAdapter) -> Done:
        """Serve an adapter as a task; it answers once this call has returned."""
        name = asked.lora_name
        source = adapters.find(asked.lora_path)
        with one_at_a_time:
            taken = name in engine.tasks
            if taken and not asked.load_inplace:
                raise Problem(
                    409, "task_exists", f"expected a new name, got {name!r}, which is served; send load_inplace: true"
                )
            try:
                (engine.replace_task if taken else engine.add_task)(name, source)
            except (EngineClosed, Problem):
                raise
            except Exception as error:  # whatever a broken file makes its reader raise: it is the file's fault
                log.warning("a task could not be loaded", extra=fields(task=name), exc_info=True)
                raise Problem(422, "bad_adapter", f"{str(error) or type(error).__name__}") from error
        log.info("task loaded", extra=fields(task=name))
        return Done(message=f"Success: task {name!r} is served.")

    @router.post("/v1/unload_adapter")
    @router.post("/v1/unload_lora_adapter", include_in_schema=False)
    def unload_adapter(asked: UnloadAdapter) -> Done:
        """Forget a task."""
        name = asked.lora_name
        if name not in engine.tasks:
            raise unknown_task(name, engine.tasks)
        engine.remove_task(name)
        log.info("task removed", extra=fields(task=name))
        return Done(message=f"Success: task {name!r} is served no more.")

    return router

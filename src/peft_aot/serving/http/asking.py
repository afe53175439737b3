"""Questions to an engine, awaited together: within a timeout, and only as long as the caller is there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from starlette.types import Receive

from peft_aot.serving.errors import DeadlineExceeded, EngineClosed, UnknownTask
from peft_aot.serving.request import Answer, Kind, Request, TaskInfo
from peft_aot.suggestions import did_you_mean

from .contract import Engine
from .guard import client_gone
from .problems import INVALID, Problem
from .schemas import BASE
from .settings import Settings

ENDPOINTS: Mapping[Kind, str] = {
    "single_label": "/v1/classify",
    "multi_label": "/v1/classify",
    "regression": "/v1/classify",
    "tokens": "/v1/tag",
    "embedding": "/v1/embed",
}
LISTED = 20


def check_task(name: str, tasks: Mapping[str, TaskInfo], endpoint: str) -> None:
    """Refuse a task that is not there or that another endpoint answers.

    Raises:
        UnknownTask: There is none of that name.
        Problem: Its answers have another form.
    """
    if name == BASE:
        right = "/v1/embed"
    elif name in tasks:
        right = ENDPOINTS[tasks[name].kind]
    else:
        raise UnknownTask(f"expected a task that is served, got {name!r}; {_suggestion(name, tasks)}")
    if right != endpoint:
        raise Problem(
            422, "wrong_kind", f"expected a task for {endpoint}, got {name!r}, which is for {right}; send it there"
        )


def check_timeout(wanted: float | None, settings: Settings) -> float:
    """Return the timeout of a call, in seconds.

    Raises:
        Problem: It is longer than allowed.
    """
    if wanted is not None and wanted > settings.max_timeout:
        raise Problem(
            422, INVALID, f"expected a timeout of at most {settings.max_timeout:g} s, got a longer one; allow less"
        )
    return settings.timeout if wanted is None else wanted


def check_number(number: int, settings: Settings) -> None:
    """Refuse too many texts in one call.

    Raises:
        Problem: There are more than allowed.
    """
    if number > settings.max_texts:
        raise Problem(
            422, INVALID, f"expected at most {settings.max_texts} texts in a call, got {number}; send several calls"
        )


def submit(engine: Engine, request: Request, settings: Settings) -> Future[Answer]:
    """Queue a request.

    Raises:
        Problem: The text is too long, or the engine cannot read it.
        UnknownTask, Overloaded, EngineClosed: See the engine.
    """
    length = max(len(request.text), len(request.pair or ""))
    if length > settings.max_characters:
        raise Problem(
            422,
            INVALID,
            f"expected a text of at most {settings.max_characters:,} characters, got {length:,}; shorten it",
        )
    try:
        return engine.submit(request)
    except UnknownTask:
        raise
    except ValueError as error:
        raise Problem(422, INVALID, str(error)) from error


async def settle(futures: Sequence[Future[Answer]], timeout: float, receive: Receive) -> list[Answer | BaseException]:
    """Wait for all answers, or what is raised in their place.

    Args:
        futures: What `submit` returned.
        timeout: Seconds from now; what is not answered then gets a `DeadlineExceeded`.
        receive: Tells when the caller goes away. What nobody waits for is withdrawn.

    Raises:
        Problem: The caller went away.
    """
    waiting = [asyncio.wrap_future(future) for future in futures]
    everything: asyncio.Future[Any] = asyncio.gather(*waiting, return_exceptions=True)
    gone: asyncio.Future[Any] = asyncio.ensure_future(_disconnected(receive))
    try:
        await asyncio.wait({everything, gone}, timeout=timeout, return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not everything.done():
            raise client_gone()
        late = DeadlineExceeded(f"expected an answer within {timeout:g} s, got none; allow more time or send less")
        return [_outcome(each) if each.done() else late for each in waiting]
    finally:
        gone.cancel()
        everything.cancel()


def _outcome(answer: asyncio.Future[Answer]) -> Answer | BaseException:
    if answer.cancelled():
        return EngineClosed("expected an answer, got the end of the engine; ask again")
    return answer.exception() or answer.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


def _suggestion(name: str, tasks: Mapping[str, TaskInfo]) -> str:
    if not tasks:
        return "no task is loaded yet"
    said = did_you_mean(name, tasks)
    return said if len(tasks) <= LISTED or said.startswith("did you mean") else "GET /v1/tasks lists them"

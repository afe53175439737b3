"""Questions to an engine, awaited together: within a timeout, and only as long as the caller is there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from types import MappingProxyType
from typing import Any

from starlette.types import Receive

from peft_aot.serving.errors import DeadlineExceeded, EngineClosed, UnknownTask
from peft_aot.serving.request import Answer, Request

from .checks import check_length, unknown_task
from .contract import Engine
from .guard import client_gone
from .problems import INVALID, Problem
from .schemas import BASE
from .settings import Settings

SHORT = 4096
"""Characters that are encoded so quickly that other calls may wait for it."""
HINTS = 3
"""Unknown names of a call for which one that is like it is looked for."""


async def ask_all(
    engine: Engine, requests: Sequence[Request], settings: Settings, timeout: float, receive: Receive
) -> list[Answer]:
    """Ask requests that are only of use together.

    Args:
        engine: Answers.
        requests: For tasks that are there.
        settings: Limits.
        timeout: Seconds.
        receive: Tells when the caller goes away. What nobody waits for is withdrawn.

    Raises:
        Exception: The first that a request met; the others are withdrawn.
    """
    answers: list[Answer] = []
    for answer in await ask_each(engine, requests, settings, timeout, receive, together=True):
        if isinstance(answer, BaseException):
            raise answer
        answers.append(answer)
    return answers


async def ask_each(
    engine: Engine,
    requests: Sequence[Request],
    settings: Settings,
    timeout: float,
    receive: Receive,
    together: bool = False,
    absences: Mapping[str, Exception] = MappingProxyType({}),
) -> list[Answer | BaseException]:
    """Ask requests; each gets its answer or what was raised in its place.

    Args:
        engine: Answers.
        requests: For tasks that may be there or not.
        settings: Limits.
        timeout: Seconds.
        receive: Tells when the caller goes away.
        together: Whether to withdraw all as soon as one is refused.
        absences: Why tasks that should be there are not.

    Raises:
        Problem: The caller went away.
    """
    if sum(len(request.text) + len(request.pair or "") for request in requests) > SHORT:
        places = await asyncio.to_thread(_submit, engine, requests, settings, absences)
    else:
        places = _submit(engine, requests, settings, absences)
    futures = [place for place in places if isinstance(place, Future)]
    if together and len(futures) < len(places):
        for future in futures:
            future.cancel()
        return [place for place in places if isinstance(place, BaseException)]
    answers = iter(await _settle(futures, timeout, receive) if futures else [])
    return [next(answers) if isinstance(place, Future) else place for place in places]


def _submit(
    engine: Engine, requests: Sequence[Request], settings: Settings, absences: Mapping[str, Exception]
) -> list[Future[Answer] | BaseException]:
    tasks, unknown = engine.tasks, dict(absences)
    places: list[Future[Answer] | BaseException] = []
    for request in requests:
        name = request.task
        try:
            if name not in tasks and name != BASE:
                if name not in unknown:
                    unknown[name] = unknown_task(name, tasks, search=len(unknown) < HINTS)
                raise unknown[name]
            check_length(request, settings)
            places.append(engine.submit(request))
        except UnknownTask as error:
            places.append(error)
        except ValueError as error:
            places.append(Problem(422, INVALID, str(error)))
        except Exception as error:  # it concerns this request alone
            places.append(error)
    return places


async def _settle(futures: Sequence[Future[Answer]], timeout: float, receive: Receive) -> list[Answer | BaseException]:
    """Wait for all answers, or what is raised in their place.

    Args:
        futures: What the engine returned.
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
        for each in (gone, *waiting):
            each.cancel()


def _outcome(answer: asyncio.Future[Answer]) -> Answer | BaseException:
    if answer.cancelled():
        return EngineClosed("expected an answer, got the end of the engine; ask again")
    return answer.exception() or answer.result()


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass

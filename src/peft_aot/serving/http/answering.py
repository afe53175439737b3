"""The endpoints that answer texts."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Collection, Mapping
from typing import Any, TypeAlias

from fastapi import APIRouter, Request

import peft_aot.serving.request as serving
from peft_aot.serving.request import Embedding

from .asking import ask_all, ask_each
from .checks import check_number, check_task, check_timeout
from .contract import Engine
from .guard import GuardedRoute
from .logs import LOGGER, fields
from .metrics import Metrics
from .problems import problem_of
from .schemas import (
    BASE,
    Asked,
    AskedEmbedding,
    Classified,
    Embedded,
    Error,
    Mixed,
    MixedAnswer,
    MixedAnswers,
    Tagged,
    Vector,
)
from .settings import Settings

CLASSIFY, TAG, EMBED = "/v1/classify", "/v1/tag", "/v1/embed"
FindTasks: TypeAlias = Callable[[Collection[str]], Awaitable[Mapping[str, Exception]]]
log = logging.getLogger(LOGGER)


async def find_none(names: Collection[str]) -> Mapping[str, Exception]:
    """Find no task but those the engine has."""
    return {}


def answering_routes(
    engine: Engine,
    settings: Settings,
    metrics: Metrics,
    errors: dict[int | str, Any],
    find_tasks: FindTasks = find_none,
) -> APIRouter:
    """Make the endpoints that answer texts.

    Args:
        engine: Answers.
        settings: Limits.
        metrics: Told how many texts each task gets.
        errors: The documentation of what may go wrong.
        find_tasks: Given the names of tasks that are asked and not there, gets those that it can into the engine, and
            returns why others that should be there are not.
    """
    router = APIRouter(route_class=GuardedRoute, responses=errors, tags=["answers"])

    async def absent(names: set[str]) -> Mapping[str, Exception]:
        missing = names - engine.tasks.keys() - {BASE}
        return await find_tasks(missing) if missing else {}

    async def answers(asked: Asked, request: Request, endpoint: str) -> list[Any]:
        questions = asked.questions
        request.state.texts = len(questions)
        timeout = check_timeout(asked.timeout, settings)
        check_number(len(questions), settings)
        for problem in (await absent({asked.task})).values():
            raise problem
        check_task(asked.task, engine.tasks, endpoint)
        metrics.count_texts(asked.task, len(questions))
        requests = [serving.Request(asked.task, text, pair, timeout) for text, pair in questions]
        return await ask_all(engine, requests, settings, timeout, request.receive)

    @router.post(CLASSIFY)
    async def classify(asked: Asked, request: Request) -> Classified:
        """Classify texts, or predict a number for each, with one task."""
        return Classified(task=asked.task, results=await answers(asked, request, CLASSIFY))

    @router.post(TAG)
    async def tag(asked: Asked, request: Request) -> Tagged:
        """Label the words of texts, and mark the entities in them, with one task."""
        return Tagged(task=asked.task, results=await answers(asked, request, TAG))

    @router.post(EMBED)
    async def embed(asked: AskedEmbedding, request: Request) -> Embedded:
        """Turn texts into vectors of length 1, with one task or with the backbone alone (`__base__`)."""
        found = await answers(asked, request, EMBED)
        return Embedded(task=asked.task, width=engine.width, results=[_vector(answer) for answer in found])

    @router.post("/v1/batch", response_model_exclude_none=True)
    async def batch(asked: Mixed, request: Request) -> MixedAnswers:
        """Answer texts of any tasks; each gets its answer or its own error."""
        request.state.texts = len(asked.requests)
        timeout = check_timeout(asked.timeout, settings)
        check_number(len(asked.requests), settings)
        requests = [serving.Request(each.task, each.text, each.pair, timeout) for each in asked.requests]
        absences = await absent({each.task for each in requests})
        found = await ask_each(engine, requests, settings, timeout, request.receive, absences=absences)
        for each, answer in zip(requests, found, strict=True):
            if not isinstance(answer, BaseException):
                metrics.count_texts(each.task, 1)
        return MixedAnswers(results=[_mixed(each.task, answer) for each, answer in zip(requests, found, strict=True)])

    return router


def _vector(answer: Embedding) -> Vector:
    return Vector(embedding=answer.vector.tolist())


def _mixed(task: str, answer: serving.Answer | BaseException) -> MixedAnswer:
    if isinstance(answer, BaseException):
        problem = problem_of(answer)
        if problem.status == 500:
            log.error("a question of several failed", extra=fields(task=task), exc_info=answer)
        return MixedAnswer(task=task, error=Error(**problem.body))
    if isinstance(answer, Embedding):
        return MixedAnswer(task=task, result=_vector(answer))
    return MixedAnswer(task=task, result=answer)

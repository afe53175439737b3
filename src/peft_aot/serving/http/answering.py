"""The endpoints that answer texts."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from fastapi import APIRouter, Request

import peft_aot.serving.request as serving
from peft_aot.serving.request import Embedding

from .asking import ENDPOINTS, check_number, check_task, check_timeout, settle, submit
from .contract import Engine
from .guard import GuardedRoute
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


def answering_routes(engine: Engine, settings: Settings, metrics: Metrics, errors: dict[int | str, Any]) -> APIRouter:
    """Make the endpoints that answer texts.

    Args:
        engine: Answers.
        settings: Limits.
        metrics: Told how many texts each task gets.
        errors: The documentation of what may go wrong.
    """
    router = APIRouter(route_class=GuardedRoute, responses=errors, tags=["answers"])

    async def answers(asked: Asked, request: Request, endpoint: str) -> list[Any]:
        questions = asked.questions
        timeout = check_timeout(asked.timeout, settings)
        check_number(len(questions), settings)
        check_task(asked.task, engine.tasks, endpoint)
        metrics.count_texts(asked.task, len(questions))
        request.state.texts = len(questions)
        futures: list[Future[serving.Answer]] = []
        try:
            for text, pair in questions:
                futures.append(submit(engine, serving.Request(asked.task, text, pair, timeout), settings))
            found = await settle(futures, timeout, request.receive)
        except BaseException:
            for future in futures:
                future.cancel()
            raise
        for answer in found:
            if isinstance(answer, BaseException):
                raise answer
        return found

    @router.post(CLASSIFY)
    async def classify(asked: Asked, request: Request) -> Classified:
        """Classify texts, or predict a number for each, with one task."""
        found = await answers(asked, request, CLASSIFY)
        return Classified(task=asked.task, results=found)

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
        timeout = check_timeout(asked.timeout, settings)
        check_number(len(asked.requests), settings)
        request.state.texts = len(asked.requests)
        places: list[Future[serving.Answer] | Exception] = []
        unknown: dict[str, Exception] = {}
        tasks = engine.tasks
        for question in asked.requests:
            name = question.task
            try:
                if name in unknown:
                    raise unknown[name]
                check_task(name, tasks, EMBED if name == BASE or name not in tasks else ENDPOINTS[tasks[name].kind])
                places.append(submit(engine, serving.Request(name, question.text, question.pair, timeout), settings))
                metrics.count_texts(name, 1)
            except Exception as error:  # it concerns this question alone
                if name not in tasks and name != BASE:
                    unknown[name] = error
                places.append(error)
        futures = [place for place in places if isinstance(place, Future)]
        found = iter(await settle(futures, timeout, request.receive) if futures else [])
        answered = [next(found) if isinstance(place, Future) else place for place in places]
        return MixedAnswers(
            results=[_mixed(question.task, answer) for question, answer in zip(asked.requests, answered, strict=True)]
        )

    return router


def _vector(answer: Embedding) -> Vector:
    return Vector(embedding=answer.vector.tolist())


def _mixed(task: str, answer: serving.Answer | BaseException) -> MixedAnswer:
    if isinstance(answer, BaseException):
        return MixedAnswer(task=task, error=Error(**problem_of(answer).body))
    if isinstance(answer, Embedding):
        return MixedAnswer(task=task, result=_vector(answer))
    return MixedAnswer(task=task, result=answer)

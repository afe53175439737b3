"""What goes wrong, as a status and one shape of body: {"error": {"type": ..., "message": ...}}.

Nothing here repeats what was sent beyond a task's name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from peft_aot.serving.errors import DeadlineExceeded, EngineClosed, Overloaded, UnknownTask

INVALID = "invalid_request"
OF_HTTP = {
    400: (INVALID, "expected a JSON body in UTF-8 that can be read, got another; send a JSON object"),
    404: ("not_found", "expected the path of an endpoint, got another; /docs lists them"),
    405: ("method_not_allowed", "expected another method for this path; the header Allow names it"),
}


class Problem(Exception):
    """A call that is refused.

    Args:
        status: Of HTTP.
        kind: What is wrong, for programs.
        message: What is wrong, for people.
        headers: Sent along.
    """

    def __init__(self, status: int, kind: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.message = message
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, str]:
        """What stands under "error"."""
        return {"type": self.kind, "message": self.message}


def problem_of(error: BaseException) -> Problem:
    """Say what an error means to whoever called."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, UnknownTask):
        return Problem(404, "unknown_task", str(error))
    if isinstance(error, Overloaded):
        wait = max(1, math.ceil(error.retry_after)) if math.isfinite(error.retry_after) else 1
        return Problem(429, "overloaded", str(error), {"Retry-After": str(wait)})
    if isinstance(error, DeadlineExceeded):
        return Problem(504, "deadline_exceeded", str(error) or "the timeout passed; allow more time or send less")
    if isinstance(error, EngineClosed):
        return Problem(503, "unavailable", str(error) or "the server is stopping; ask another", {"Retry-After": "1"})
    if isinstance(error, RequestValidationError):
        return _invalid(error.errors())
    if isinstance(error, HTTPException):
        kind, message = OF_HTTP.get(error.status_code, ("http_error", str(error.detail)))
        return Problem(error.status_code, kind, message, error.headers)
    return Problem(500, "internal", "something went wrong here; the server's log says what")


def respond(problem: Problem) -> JSONResponse:
    """Turn a problem into a response."""
    return JSONResponse({"error": problem.body}, problem.status, problem.headers)


async def answer_error(request: Request, error: Exception) -> JSONResponse:
    """Handle an error as FastAPI calls its handlers."""
    problem = problem_of(error)
    request.state.problem = problem.kind
    return respond(problem)


HANDLED = (Problem, UnknownTask, Overloaded, DeadlineExceeded, EngineClosed, RequestValidationError, HTTPException)


def _invalid(errors: Sequence[Mapping[str, Any]]) -> Problem:
    first = errors[0]
    kind, message = first["type"], first["msg"].removeprefix("Value error, ")
    place = list(first["loc"][1:])
    if kind == "json_invalid":
        where = place[0] if place else 0
        return Problem(400, INVALID, f"expected JSON, got an error at character {where}; repair the body")
    if kind == "extra_forbidden":
        place.pop()  # a name that the caller chose
        message = "there is a field that is not known"
    if kind == "missing":
        message = "this field is missing"
    where = ".".join(str(part) for part in ["body", *place])
    return Problem(422, INVALID, f"expected a body as /docs shows it, got another; at {where}: {message}")

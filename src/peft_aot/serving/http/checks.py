"""What is refused of a call that can be read, before anything is queued."""

from __future__ import annotations

from collections.abc import Mapping

from peft_aot.serving.errors import UnknownTask
from peft_aot.serving.request import Kind, Request, TaskInfo
from peft_aot.suggestions import did_you_mean

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
        raise unknown_task(name, tasks)
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


def check_length(request: Request, settings: Settings) -> None:
    """Refuse a text that is too long.

    Raises:
        Problem: It has more characters than allowed.
    """
    length = max(len(request.text), len(request.pair or ""))
    if length > settings.max_characters:
        raise Problem(
            422,
            INVALID,
            f"expected a text of at most {settings.max_characters:,} characters, got {length:,}; shorten it",
        )


def unknown_task(name: str, tasks: Mapping[str, TaskInfo], search: bool = True) -> UnknownTask:
    """Say that there is no such task.

    Args:
        name: What was asked for.
        tasks: Those there are.
        search: Whether to look for one of a like name, which takes a while among many.
    """
    suggestion = "GET /v1/tasks lists them"
    if not tasks:
        suggestion = "none is loaded yet"
    elif search:
        said = did_you_mean(name, tasks)
        suggestion = said if len(tasks) <= LISTED or said.startswith("did you mean") else suggestion
    return UnknownTask(f"expected a task that is served, got {name!r}; {suggestion}")

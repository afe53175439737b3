"""What every call passes before its body is parsed: the key, the type of the body, its size and how long it takes.

A route rather than a middleware: it knows by itself what it asks for, and its refusals are answered like any other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message, Receive

from .problems import Problem
from .settings import Settings


class GuardedRoute(APIRoute):
    """A route that asks for the key."""

    admin: ClassVar[bool] = False

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Put the checks before the handler."""
        handler = super().get_route_handler()

        async def guarded(request: Request) -> Response:
            settings: Settings = request.app.state.settings
            settings.keys.check(request.headers.get("authorization"), self.admin)
            if request.method != "POST":
                return await handler(request)
            _check_type(request.headers.get("content-type", ""))
            _check_coding(request.headers.get("content-encoding", "identity"))
            body = await _read(request, settings)
            return await handler(Request(request.scope, _replay(body, request.receive)))

        return guarded


class AdminRoute(GuardedRoute):
    """A route that asks for the admin key."""

    admin = True


def _check_type(content_type: str) -> None:
    essence = content_type.partition(";")[0].strip().lower()
    if not (essence.startswith("application/") and (essence == "application/json" or essence.endswith("+json"))):
        raise Problem(
            415,
            "unsupported_media_type",
            "expected a JSON body, got another type or none; send the header 'Content-Type: application/json'",
        )


def _check_coding(coding: str) -> None:
    if coding.strip().lower() not in {"", "identity"}:
        raise Problem(
            415,
            "unsupported_media_type",
            "expected a body that is not compressed, got the header Content-Encoding; send the JSON as it is",
        )


async def _read(request: Request, settings: Settings) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isascii() and declared.isdigit() and (len(declared) > 18 or int(declared) > settings.max_body):
        raise _too_large(settings.max_body)
    try:
        return await asyncio.wait_for(_collect(request.receive, settings.max_body), settings.body_timeout)
    except asyncio.TimeoutError as error:
        raise Problem(
            408, "timeout", f"expected the body within {settings.body_timeout:g} s, got a part of it; send it faster"
        ) from error


async def _collect(receive: Receive, limit: int) -> bytes:
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise client_gone()
        body += message.get("body", b"")
        if len(body) > limit:
            raise _too_large(limit)
        if not message.get("more_body", False):
            return bytes(body)


def _replay(body: bytes, receive: Receive) -> Receive:
    unread: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return unread.pop() if unread else await receive()

    return replay


def _too_large(limit: int) -> Problem:
    return Problem(
        413,
        "too_large",
        f"expected a body of at most {limit:,} bytes, got more; send fewer texts",
        {"Connection": "close"},
    )


def client_gone() -> Problem:
    """Return what is logged of a caller that went away; nobody reads it."""
    return Problem(499, "client_gone", "the caller closed the connection")

"""The page for people, which calls the same endpoints as everyone; it loads nothing from elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from importlib.resources import files

from fastapi import APIRouter, Response

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
    "form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-cache",
}
PARTS = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}


def page_routes() -> APIRouter:
    """Make the page's endpoints, which need no key: it asks for one and sends it with its calls."""
    router = APIRouter(include_in_schema=False)
    for path, (name, media_type) in PARTS.items():
        part = _part(files(__package__).joinpath(name).read_bytes(), media_type)
        router.get(path)(part)
        router.head(path)(part)
    return router


def _part(content: bytes, media_type: str) -> Callable[[], Response]:
    def part() -> Response:
        return Response(content, headers=HEADERS, media_type=media_type)

    return part

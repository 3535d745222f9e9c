"""Routes of the page: its files, sent from memory under a strict Content-Security-Policy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib.resources import files

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

__all__ = ["PAGE_PATHS", "page_routes"]

FILES = {
    "/": ("page.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
}
# They say nothing of the bundle, so they are sent without a key: it is the page that asks for one.
PAGE_PATHS = tuple(FILES)
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "connect-src": "'self'",
    "img-src": "blob: data:",  # the image that was chosen, and the icon
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "Permissions-Policy": "camera=(self), microphone=(), geolocation=()",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",  # or a newer server's page would run with an older one's script
}


def page_routes() -> list[Route]:
    """One for each file, read now: the disk is not needed again."""
    folder = files("prunion.runtime.serve.http.page")
    return [
        Route(path, _sender((folder / name).read_bytes(), kind))
        for path, (name, kind) in FILES.items()
    ]


def _sender(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    async def send(request: Request) -> Response:
        return Response(content, headers=HEADERS, media_type=kind)

    return send

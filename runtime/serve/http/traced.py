"""HTTP requests as spans; in the stack of the application only where traces are sent."""

from __future__ import annotations

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prunion.runtime.batching import Tracing

__all__ = ["Traced"]

HEALTH = "/v2/health/"


class Traced:
    """ASGI middleware: a span for each request, named as its route; `scope["trace"]` is its id."""

    def __init__(self, app: ASGIApp, tracing: Tracing) -> None:
        self.app = app
        self.tracing = tracing

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"].startswith(HEALTH):
            await self.app(scope, receive, send)
            return
        sent = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        method = scope["method"]
        attributes = {"http.request.method": method, "url.path": scope["path"][:200]}
        with self.tracing.request(method, sent, attributes) as span:
            scope["trace"] = self.tracing.trace_id(span)

            async def answer(message: Message) -> None:
                if message["type"] == "http.response.start":
                    status = message["status"]
                    span.set_attribute("http.response.status_code", status)
                    if status >= 500:
                        self.tracing.failed(span, str(status))
                await send(message)

            await self.app(scope, receive, answer)
            route = route_of(scope)
            if route:
                span.update_name(f"{method} {route}")
                span.set_attribute("http.route", route)


def route_of(scope: Scope) -> str:
    """The path as its route has it, such as `/v2/models/{name}/infer`; empty if there is none."""
    if "endpoint" not in scope:
        return ""
    path = str(scope["path"])
    for name, value in scope.get("path_params", {}).items():
        path = path.replace(f"/{value}", f"/{{{name}}}", 1)
    return path

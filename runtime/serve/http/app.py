"""The protocol over HTTP: routes, and what every request passes before it reaches one."""

from __future__ import annotations

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prunion.runtime.batching import trace_id_of
from prunion.runtime.errors import OverloadError, PrunionError, printable
from prunion.runtime.model import Model
from prunion.runtime.serve.guard import ApiKeys, Gate, refusal_of, request_id
from prunion.runtime.serve.http.body import ClientGone
from prunion.runtime.serve.http.handlers import Handlers
from prunion.runtime.serve.http.page.routes import PAGE_PATHS, page_routes
from prunion.runtime.serve.http.plain import plain_routes
from prunion.runtime.serve.http.traced import Traced
from prunion.runtime.serve.models import Service
from prunion.runtime.serve.options import ServeOptions

__all__ = ["create_app", "http_app"]

MAX_BODY_BYTES = 64 * 1024 * 1024
INFER = re.compile(r"/v2/models/(?P<name>[^/]+)(?:/versions/(?P<version>[^/]+))?/infer")
ABSOLUTE = re.compile(r"https?://(?P<host>[^/]+)(?P<path>/.*)?", re.IGNORECASE)
HEALTH = ("/v2/health/live", "/v2/health/ready")  # no key, no limit: an orchestrator asks
EXPOSED = ["Inference-Header-Content-Length", "X-Request-ID", "Retry-After"]
SINGLE = frozenset(
    b"authorization content-encoding content-type inference-header-content-length origin "
    b"x-api-key".split()
)
logger = logging.getLogger("prunion.serve")
requests_log = logging.getLogger("prunion.serve.requests")


def create_app(model: Model, max_body_bytes: int = MAX_BODY_BYTES) -> Starlette:
    """The ASGI application for one model. Errors are `{"error": "…"}` with a 4xx status."""
    options = ServeOptions(log="off")
    limits = replace(options.limits, body=max_body_bytes)
    service = Service(model, replace(options, limits=limits))
    return http_app(service, Gate(limits.requests, limits.client_requests))


def http_app(service: Service, gate: Gate, keys: ApiKeys | None = None) -> Starlette:
    """The ASGI application of a service; `gate` counts its requests, `keys` say who may ask."""
    handlers = Handlers(service)
    models = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
    routes = [  # tried in this order, so what is asked most comes first
        *(Route(f"{base}/infer", handlers.infer, methods=["POST"]) for base in models),
        Route("/v2", handlers.server),
        Route("/v2/health/live", handlers.alive),
        Route("/v2/health/ready", handlers.ready),
        Route("/v2/models/stats", handlers.all_statistics),
        Route("/v2/repository/index", handlers.index, methods=["POST"]),
        Route("/v2/repository/models/{name}/load", handlers.load, methods=["POST"]),
        Route("/v2/repository/models/{name}/unload", handlers.unload, methods=["POST"]),
        Route("/metrics", handlers.metrics),
        *plain_routes(service, handlers.repository),
    ]
    for base in models:
        routes += [
            Route(base, handlers.model),
            Route(f"{base}/ready", handlers.model_ready),
            Route(f"{base}/config", handlers.config),
            Route(f"{base}/stats", handlers.statistics),
        ]
    if service.options.page:
        routes += page_routes()
    layers = [
        Middleware(_Front, service=service, gate=gate, keys=keys),
        Middleware(_Straight, infer=handlers.infer),
    ]
    origins = service.options.allow_origins
    if origins:
        cors = Middleware(
            CORSMiddleware,
            allow_origins=origins,
            allow_methods=["GET", "POST"],
            allow_headers=["*"],
            expose_headers=EXPOSED,
        )
        layers.insert(0, cors)
    if service.tracing is not None:
        layers.insert(0, Middleware(Traced, tracing=service.tracing))
    return Starlette(
        routes=routes,
        middleware=layers,
        exception_handlers={
            PrunionError: _refused,
            HTTPException: _http_error,
            ClientGone: _gone,
            MemoryError: _refused,
            Exception: _refused,
        },
    )


class _Straight:
    """What is asked most reaches its handler without the layers that find all others."""

    def __init__(self, app: ASGIApp, infer: Callable[[Request], Awaitable[Response]]) -> None:
        self.app = app
        self.infer = infer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        match = None
        if scope["type"] == "http" and scope["method"] == "POST":
            match = INFER.fullmatch(scope["path"].removeprefix(scope.get("root_path", "")))
        if match is None:
            await self.app(scope, receive, send)
            return
        named = {name: value for name, value in match.groupdict().items() if value is not None}
        scope["path_params"], scope["endpoint"] = named, self.infer
        request = Request(scope, receive, send)
        try:
            response = await self.infer(request)
        except HTTPException as exc:
            response = await _http_error(request, exc)
        except ClientGone as exc:
            response = await _gone(request, exc)
        except (PrunionError, MemoryError) as exc:
            response = await _refused(request, exc)
        await response(scope, receive, send)


class _Front:
    """What every request passes: its id, its key, the gate, the log."""

    def __init__(self, app: ASGIApp, service: Service, gate: Gate, keys: ApiKeys | None) -> None:
        self.app = app
        self.service = service
        self.gate = gate
        self.keys = keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope, begun = _origin_form(scope), time.perf_counter()
        headers = {key: value.decode("latin-1") for key, value in scope["headers"]}
        own_id = request_id(headers.get(b"x-request-id", ""))
        address = scope.get("client") or ("?", 0)
        client, status, told = str(address[0]), 500, False
        path = scope["path"].removeprefix(scope.get("root_path", ""))

        async def answer(message: Message) -> None:
            nonlocal status, told
            if message["type"] == "http.response.start":
                status, told = message["status"], True
                message["headers"].append((b"x-request-id", own_id.encode()))
                if not self.service.ready:  # or a client would lose its next request
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        if path in HEALTH:
            await self.app(scope, receive, answer)
            return
        try:
            if twice := _given_twice(scope):
                text = f"{twice} is given twice: send it once"
                refused = JSONResponse({"error": text}, 400, headers={"connection": "close"})
                await refused(scope, receive, answer)
                return
            if self.keys is not None and path not in PAGE_PATHS:
                owner = self.keys.owner(headers.get(b"authorization"), headers.get(b"x-api-key"))
                if owner is None:
                    extra = {"www-authenticate": "Bearer", "connection": "close"}
                    text = "no API key that is known: send Authorization: Bearer KEY"
                    response = JSONResponse({"error": text}, 401, headers=extra)
                    await response(scope, receive, answer)
                    return
                client = owner
            with self.gate.enter(client):
                await self.app(scope, receive, answer)
        except PrunionError as exc:
            self.service.statistics.record_refusal(refusal_of(exc).reason)
            await _answered(exc, close=True)(scope, receive, answer)
        except asyncio.CancelledError:
            if self.service.ready or told:
                raise
            # The drain is over, and the request not yet: its body, mostly, has not come.
            cut_off = OverloadError("the server stops: ask another one, or later", "draining")
            logger.warning("%s %s was cut off: the server stops", scope["method"], printable(path))
            self.service.statistics.record_refusal(cut_off.reason)
            await _answered(cut_off, close=True)(scope, receive, answer)
        finally:
            spent = 1000 * (time.perf_counter() - begun)
            self._log(scope, own_id, client, status, spent, headers.get(b"traceparent", ""))

    def _log(
        self, scope: Scope, own_id: str, client: str, status: int, ms: float, parent: str
    ) -> None:
        if requests_log.isEnabledFor(logging.INFO):
            fields = {
                "id": own_id,
                "client": client,
                "method": scope["method"],
                "path": printable(scope["path"][:200]),
                "status": status,
                "ms": round(ms, 3),
            }
            trace = scope.get("trace") or trace_id_of(parent)
            if trace:
                fields["trace_id"] = trace
            requests_log.info("%s %s %s", *list(fields.values())[2:5], extra={"fields": fields})


def _origin_form(scope: Scope) -> Scope:
    """A request whose target is a whole URL, as proxies send it, as one whose target is a path.

    The URL's host counts then, whatever the header says (RFC 9112, 3.2.2).
    """
    root = scope.get("root_path", "")
    match = ABSOLUTE.fullmatch(scope["path"].removeprefix(root))
    if match is None:
        return scope
    path = match["path"] or "/"
    headers = [(name, value) for name, value in scope["headers"] if name != b"host"]
    headers.append((b"host", match["host"].encode()))
    return {**scope, "path": root + path, "raw_path": (root + path).encode(), "headers": headers}


def _given_twice(scope: Scope) -> str:
    """A header that means one thing and is there again; "" if none is.

    One of two would be passed over, and who stands in between may have gone by the other.
    """
    names = [name for name, _ in scope["headers"] if name in SINGLE]
    again = next((x for x in names if names.count(x) > 1), b"")
    return str(again.decode("latin-1").title())


def _answered(error: Exception, close: bool = False) -> Response:
    refusal = refusal_of(error)
    headers = {} if refusal.retry_after is None else {"retry-after": str(refusal.retry_after)}
    if close:
        headers["connection"] = "close"
    return JSONResponse({"error": refusal.text}, refusal.status, headers=headers)


async def _refused(request: Request, exc: Exception) -> Response:
    return _answered(exc)


async def _gone(request: Request, exc: Exception) -> Response:
    return Response(status_code=499)


async def _http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    return JSONResponse({"error": exc.detail}, exc.status_code, headers=exc.headers)

"""The protocol over HTTP: routes, and what every request passes before it reaches one."""

from __future__ import annotations

import json
import logging
import re
import time
import uuid
from dataclasses import replace
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prunion.runtime.errors import InputError, PrunionError
from prunion.runtime.model import Model
from prunion.runtime.protocol import http_request, http_response
from prunion.runtime.serve.guard import ApiKeys, Gate, refusal_of
from prunion.runtime.serve.http.body import ClientGone, check_json, read_body, unless_gone, unpacked
from prunion.runtime.serve.http.page.routes import PAGE_PATHS, page_routes
from prunion.runtime.serve.http.plain import plain_routes
from prunion.runtime.serve.metrics import metrics_text
from prunion.runtime.serve.options import ServeOptions
from prunion.runtime.serve.repository import Repository
from prunion.runtime.serve.service import Service

__all__ = ["create_app", "http_app"]

MAX_BODY_BYTES = 64 * 1024 * 1024
INLINE = 32 * 1024  # bytes of JSON that are parsed on the event loop; more go to a thread
HEALTH = ("/v2/health/live", "/v2/health/ready")  # no key, no limit: an orchestrator asks
REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
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
    handlers = _Handlers(service)
    routes = [
        Route("/v2", handlers.server),
        Route("/v2/health/live", handlers.alive),
        Route("/v2/health/ready", handlers.ready),
        Route("/v2/models/stats", handlers.statistics),
        Route("/v2/repository/index", handlers.index, methods=["POST"]),
        Route("/v2/repository/models/{name}/load", handlers.load, methods=["POST"]),
        Route("/v2/repository/models/{name}/unload", handlers.unload, methods=["POST"]),
        Route("/metrics", handlers.metrics),
        *plain_routes(service, handlers.repository),
    ]
    for base in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
        routes += [
            Route(base, handlers.model),
            Route(f"{base}/ready", handlers.model_ready),
            Route(f"{base}/config", handlers.config),
            Route(f"{base}/stats", handlers.statistics),
            Route(f"{base}/infer", handlers.infer, methods=["POST"]),
        ]
    if service.options.page:
        routes += page_routes()
    return Starlette(
        routes=routes,
        middleware=[Middleware(_Front, service=service, gate=gate, keys=keys)],
        exception_handlers={
            PrunionError: _refused,
            HTTPException: _http_error,
            ClientGone: _gone,
            MemoryError: _refused,
            Exception: _refused,
        },
    )


class _Handlers:
    def __init__(self, service: Service) -> None:
        self.service = service
        self.repository = Repository(service)

    async def server(self, request: Request) -> Response:
        return JSONResponse(self.repository.metadata())

    async def alive(self, request: Request) -> Response:
        return Response(status_code=200)

    async def ready(self, request: Request) -> Response:
        return _state(self.service.ready)

    async def model(self, request: Request) -> Response:
        return JSONResponse(self.repository.metadata(*_named(request)))

    async def model_ready(self, request: Request) -> Response:
        return _state(self.repository.is_ready(*_named(request)))

    async def config(self, request: Request) -> Response:
        return JSONResponse(self.repository.config(*_named(request)))

    async def statistics(self, request: Request) -> Response:
        return JSONResponse(self.repository.statistics(*_named(request)))

    async def index(self, request: Request) -> Response:
        value = await self._object(request)
        return JSONResponse(self.repository.index(value.get("ready") is True))

    async def load(self, request: Request) -> Response:
        value = await self._object(request)
        if value.get("parameters"):
            raise InputError("load takes no parameters: packs come from the folders named at start")
        await self.repository.load(request.path_params["name"])
        return Response(status_code=200)

    async def unload(self, request: Request) -> Response:
        await self._object(request)
        await self.repository.unload(request.path_params["name"])
        return Response(status_code=200)

    async def metrics(self, request: Request) -> Response:
        return Response(metrics_text(self.service), media_type="text/plain; version=0.0.4")

    async def infer(self, request: Request) -> Response:
        arrived = time.perf_counter_ns()
        name, version = _named(request)
        self.repository.describe(name, version)  # no body is read for a model that is not there
        body = await read_body(request, self.service.options.limits)
        value = request.headers.get("inference-header-content-length")
        if value is not None and not (value.isascii() and value.isdigit() and len(value) < 12):
            raise InputError("Inference-Header-Content-Length must be a whole number")
        length = None if value is None else int(value)
        packed = request.headers.get("content-encoding", "")
        run = self.service.decoder.run
        small = len(body) <= INLINE and not packed
        small = small or (length is not None and length <= INLINE and not packed)
        if small:
            parsed = self._parsed(body, packed, length)
        else:
            parsed = await run(self._parsed, body, packed, length)
        work = self.service.infer(name, version, parsed, arrived)
        answer = await unless_gone(request, work)
        content, json_length = http_response(answer)
        if json_length is None:
            return Response(content, media_type="application/json")
        headers = {"Inference-Header-Content-Length": str(json_length)}
        return Response(content, headers=headers, media_type="application/octet-stream")

    def _parsed(self, body: bytes, packed: str, length: int | None) -> Any:
        limits, form = self.service.options.limits, self.service.serving.model.sessions.form
        body = unpacked(body, packed, limits.body)
        check_json(body if length is None else body[:length], limits, form.image_shape)
        return http_request(body, length)

    async def _object(self, request: Request) -> dict[str, Any]:
        body = await read_body(request, replace(self.service.options.limits, body=1 << 16))
        try:
            value = json.loads(body or b"{}")
        except (ValueError, RecursionError) as exc:
            raise InputError(f"the body is no JSON ({exc})") from None
        if not isinstance(value, dict):
            raise InputError("the body must be an object, or empty")
        return value


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
        begun = time.perf_counter()
        headers = {key: value.decode("latin-1") for key, value in scope["headers"]}
        given = headers.get(b"x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        address = scope.get("client") or ("?", 0)
        client, status = str(address[0]), 500
        path = scope["path"].removeprefix(scope.get("root_path", ""))

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-request-id", request_id.encode()))
                if not self.service.ready:  # or a client would lose its next request
                    message["headers"].append((b"connection", b"close"))
            await send(message)

        if path in HEALTH:
            await self.app(scope, receive, answer)
            return
        try:
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
        finally:
            self._log(scope, request_id, client, status, 1000 * (time.perf_counter() - begun))

    def _log(self, scope: Scope, request_id: str, client: str, status: int, ms: float) -> None:
        if requests_log.isEnabledFor(logging.INFO):
            fields = {
                "id": request_id,
                "client": client,
                "method": scope["method"],
                "path": scope["path"][:200],
                "status": status,
                "ms": round(ms, 3),
            }
            requests_log.info("%s %s %s", *list(fields.values())[2:5], extra={"fields": fields})


def _named(request: Request) -> tuple[str, str]:
    return request.path_params.get("name", ""), request.path_params.get("version", "")


def _state(ready: bool) -> Response:
    return Response(status_code=200) if ready else JSONResponse({"error": "stopping"}, 503)


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

"""What each route of the protocol answers."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from prunion.runtime.errors import DomainError, InputError
from prunion.runtime.protocol import (
    http_request,
    http_response,
    is_raw,
    json_value,
    known_keys,
    raw_request,
)
from prunion.runtime.serve.http.body import (
    check_json,
    packed,
    packing,
    read_body,
    unless_gone,
    unpacked,
)
from prunion.runtime.serve.metrics import metrics_text
from prunion.runtime.serve.models import Repository, Service

__all__ = ["Handlers"]

INLINE = 32 * 1024  # bytes of JSON that are parsed on the event loop; more go to a thread


class Handlers:
    """One method for each route; errors are raised, and answered where the routes are made."""

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

    async def all_statistics(self, request: Request) -> Response:
        try:
            # The statistics of all are Triton's; what the protocol itself knows at the path
            # `/v2/models/stats` is a model of that name, if there is one.
            return JSONResponse(self.repository.metadata("stats"))
        except DomainError:
            return JSONResponse(self.repository.statistics())

    async def index(self, request: Request) -> Response:
        value = await self._object(request, ("ready",))
        ready = value.get("ready", False)
        if not isinstance(ready, bool):
            raise InputError("`ready` must be true or false")
        return JSONResponse(self.repository.index(ready))

    async def load(self, request: Request) -> Response:
        value = await self._control(request)
        if value.get("parameters"):
            raise InputError("load takes no parameters: packs come from the folders named at start")
        await self.repository.load(request.path_params["name"])
        return Response(status_code=200)

    async def unload(self, request: Request) -> Response:
        await self._control(request)
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
        coding = request.headers.get("content-encoding", "")
        kind = request.headers.get("content-type", "")
        small = len(body) <= INLINE or (length is not None and length <= INLINE)
        if small and not coding:
            parsed = self._parsed(body, coding, length, kind)
        else:
            parsed = await self.service.decoder.run(self._parsed, body, coding, length, kind)
        work = self.service.infer(name, version, parsed, arrived)
        answer = await unless_gone(request, work)
        content, json_length = http_response(answer)
        return await self._packed(request, content, json_length)

    async def _packed(self, request: Request, content: bytes, json_length: int | None) -> Response:
        """An answer in the encoding that its client takes."""
        headers, kind = {}, "application/json"
        if json_length is not None:
            headers["Inference-Header-Content-Length"] = str(json_length)
            kind = "application/octet-stream"
        encoding = packing(request.headers.get("accept-encoding", ""), len(content))
        if encoding:
            headers |= {"Content-Encoding": encoding, "Vary": "Accept-Encoding"}
            if len(content) <= 2 * INLINE:
                content = packed(content, encoding)
            else:
                content = await self.service.decoder.run(packed, content, encoding)
        return Response(content, headers=headers, media_type=kind)

    def _parsed(self, body: bytes, coding: str, length: int | None, kind: str) -> Any:
        limits, form = self.service.options.limits, self.service.serving.model.sessions.form
        body = unpacked(body, coding, limits.body)
        if length == 0 or (length is None and _is_bytes(kind) and is_raw(body, form)):
            return raw_request(body, form)
        check_json(body if length is None else body[:length], limits, form.image_shape)
        return http_request(body, length)

    async def _control(self, request: Request) -> dict[str, Any]:
        """The body of a request that changes the server, unless another site's page sent it."""
        origin = request.headers.get("origin")
        own = origin is None or urlsplit(origin).netloc == request.headers.get("host")
        if not own and origin not in self.service.options.allow_origins:
            text = f"pages of {str(origin)[:100]} may not do this: start with --allow-origin"
            raise HTTPException(403, text)
        return await self._object(request, ("parameters",))

    async def _object(self, request: Request, known: Collection[str]) -> dict[str, Any]:
        body = await read_body(request, replace(self.service.options.limits, body=1 << 16))
        value = json_value(body or b"{}")
        if not isinstance(value, dict):
            raise InputError("the body must be an object, or empty")
        known_keys(value, known, "the body")
        return value


def _is_bytes(kind: str) -> bool:
    return kind.split(";")[0].strip().lower() == "application/octet-stream"


def _named(request: Request) -> tuple[str, str]:
    return request.path_params.get("name", ""), request.path_params.get("version", "")


def _state(ready: bool) -> Response:
    return Response(status_code=200) if ready else JSONResponse({"error": "stopping"}, 503)

"""The HTTP server: Open Inference Protocol v2, and `POST /predict/DOMAIN` for plain images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from prunion.runtime.base import Precision
from prunion.runtime.errors import DomainError, InputError, PrunionError
from prunion.runtime.model import Model, load
from prunion.runtime.serve.oip import infer_request, infer_response, model_metadata, server_metadata

__all__ = ["create_app", "serve"]

MAX_BODY_BYTES = 64 * 1024 * 1024
MAX_FILES = 256


def serve(
    bundle: Path | str,
    host: str = "127.0.0.1",
    port: int = 8000,
    precision: Precision = "fp32",
    packs: Sequence[Path | str] = (),
) -> None:
    """Serve a bundle, and the domains of `packs`, until interrupted.

    Raises BundleError or InputError before it listens.
    """
    model = load(bundle, precision=precision)
    for pack in packs:
        model.add_domain(pack)
    model.sessions.mixed()
    uvicorn.run(create_app(model), host=host, port=port, log_level="info")


def create_app(model: Model, max_body_bytes: int = MAX_BODY_BYTES) -> Starlette:
    """The ASGI application for one model. Errors are `{"error": "…"}` with a 4xx status."""
    handlers = _Handlers(model, max_body_bytes)
    name = "/v2/models/{name}"
    return Starlette(
        routes=[
            Route("/v2", handlers.server),
            Route("/v2/health/live", handlers.alive),
            Route("/v2/health/ready", handlers.alive),
            Route(name, handlers.model_info),
            Route(name + "/ready", handlers.model_ready),
            Route(name + "/infer", handlers.infer, methods=["POST"]),
            Route("/predict/{domain:path}", handlers.predict, methods=["POST"]),
        ],
        exception_handlers={
            PrunionError: _user_error,
            HTTPException: _http_error,
            Exception: _bug,
        },
    )


class _Handlers:
    def __init__(self, model: Model, max_body_bytes: int) -> None:
        self.model = model
        self.max_body_bytes = max_body_bytes

    async def server(self, request: Request) -> Response:
        return JSONResponse(server_metadata(metadata.version("prunion")))

    async def alive(self, request: Request) -> Response:
        return Response(status_code=200)

    async def model_info(self, request: Request) -> Response:
        self._check_name(request)
        return JSONResponse(model_metadata(self.model))

    async def model_ready(self, request: Request) -> Response:
        self._check_name(request)
        return Response(status_code=200)

    async def infer(self, request: Request) -> Response:
        self._check_name(request)
        body = await self._body(request)
        return JSONResponse(await run_in_threadpool(self._infer, body))

    def _infer(self, body: bytes) -> dict[str, Any]:
        value = _parse_json(body)
        image, domains = infer_request(value, self.model)
        return infer_response(self.model, self.model.logits(image, domains), value.get("id"))

    async def predict(self, request: Request) -> Response:
        domain, top = request.path_params["domain"], _top(request)
        self.model.domain_index(domain)
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == "multipart/form-data":
            images = await self._files(request)
        elif kind.startswith("image/") or kind == "application/octet-stream":
            images = [await self._body(request)]
        else:
            raise HTTPException(415, "send an image (Content-Type: image/…) or multipart files")
        predictions = await run_in_threadpool(self.model.predict, images, domain, top)
        rows = [
            {
                "class": x.class_name,
                "index": x.index,
                "probability": x.probability,
                "top": [c._asdict() for c in x.top],
            }
            for x in predictions
        ]
        return JSONResponse({"domain": domain, "predictions": rows})

    async def _body(self, request: Request) -> bytes:
        limit, parts, size = self.max_body_bytes, [], 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise HTTPException(413, f"the body is larger than {limit} bytes: send less")
            parts.append(part)
        return b"".join(parts)

    async def _files(self, request: Request) -> list[bytes]:
        body = await self._body(request)

        async def replay() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        if find_spec("python_multipart") is None:
            fix = "pip install 'prunion[serve]', or send one image as the body"
            raise HTTPException(501, f"this server lacks python-multipart: {fix}")
        # The body was read under our limit; starlette then parses the copy.
        async with Request(request.scope, replay).form(max_files=MAX_FILES) as form:
            # Several files may share a field's name, as a browser sends them.
            values = [value for _, value in form.multi_items()]
            files = [await x.read() for x in values if not isinstance(x, str)]
        if not files:
            raise InputError("the form holds no files: send at least one image")
        return files

    def _check_name(self, request: Request) -> None:
        own = self.model.bundle.manifest.name
        if request.path_params["name"] != own:
            raise HTTPException(404, f"no model {request.path_params['name']!r}: this is {own!r}")


def _parse_json(body: bytes) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as exc:
        raise InputError(f"the body is no JSON ({exc})") from None


def _top(request: Request) -> int:
    text = request.query_params.get("top", "5")
    if not text.isascii() or not text.isdigit() or not 1 <= len(text) <= 6 or int(text) < 1:
        raise InputError(f"top is {text[:20]!r}: give a whole number of 1 or more")
    return int(text)


async def _user_error(request: Request, exc: Exception) -> Response:
    status = 404 if isinstance(exc, DomainError) else 400 if isinstance(exc, InputError) else 500
    return JSONResponse({"error": str(exc)}, status_code=status)


async def _http_error(request: Request, exc: Exception) -> Response:
    assert isinstance(exc, HTTPException)
    return JSONResponse({"error": exc.detail}, exc.status_code, headers=exc.headers)


async def _bug(request: Request, exc: Exception) -> Response:
    # The server logs the traceback; a stranger gets none of it.
    return JSONResponse({"error": "internal error: see the server's log"}, status_code=500)

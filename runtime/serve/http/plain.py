"""Endpoints for people: an image file in, classes with probabilities out; and what there is."""

from __future__ import annotations

import time
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response
from starlette.routing import Route

from prunion.runtime.base import shown
from prunion.runtime.errors import InputError
from prunion.runtime.protocol import known_keys, openapi_document, openapi_page
from prunion.runtime.serve.http.body import read_body, unless_gone, unpacked
from prunion.runtime.serve.http.form import read_form
from prunion.runtime.serve.models import Repository, Service

__all__ = ["plain_routes"]

CLASSIFY = ":classify"


def plain_routes(service: Service, repository: Repository) -> list[Route]:
    """Their routes; `/predict/NAME` is the older name of `/v1/domains/NAME:classify`."""
    handlers = _Handlers(service, repository)
    return [
        Route("/v1/domains", handlers.domains),
        Route(f"/v1/domains/{{name:path}}{CLASSIFY}", handlers.classify, methods=["POST"]),
        Route("/v1/domains/{name:path}", handlers.domain),
        Route("/v1/domains/{name:path}", handlers.nothing, methods=["POST"]),
        Route("/v1/activity", handlers.activity),
        Route("/predict/{domain:path}", handlers.predict, methods=["POST"]),
        Route("/openapi.json", handlers.openapi),
        Route("/docs", handlers.page),
    ]


class _Handlers:
    def __init__(self, service: Service, repository: Repository) -> None:
        self.service = service
        self.repository = repository

    async def domains(self, request: Request) -> Response:
        serving = self.service.serving
        names = [x.name for x in serving.catalogue.index() if x.ready]
        return JSONResponse({"bundle": serving.name, "domains": names})

    async def domain(self, request: Request) -> Response:
        name = request.path_params["name"]
        return JSONResponse({"domain": name, "classes": await self.repository.classes(name)})

    async def activity(self, request: Request) -> Response:
        found = self.service.statistics.copied()
        total = found.total
        spent = {
            "total": total.success,
            "input": total.compute_input,
            "queue": total.queue,
            "network": total.compute_infer,
            "output": total.compute_output,
        }
        return JSONResponse(
            {
                "requests": total.success.count,
                "failed": total.fail.count,
                "refused": found.refused.total(),
                "images": total.inference_count,
                "runs": total.execution_count,
                "waiting": self.service.serving.batcher.rows,
                "spent_us": {name: x.ns // 1000 for name, x in spent.items()},
                "recent": [{"domains": dict(x.domains), "us": x.ns // 1000} for x in found.recent],
            }
        )

    async def classify(self, request: Request) -> Response:
        return await self._classified(request, request.path_params["name"])

    async def nothing(self, request: Request) -> Response:
        raise HTTPException(404, f"post an image to /v1/domains/NAME{CLASSIFY}")

    async def predict(self, request: Request) -> Response:
        return await self._classified(request, request.path_params["domain"])

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self._document())

    async def page(self, request: Request) -> Response:
        return HTMLResponse(openapi_page(self._document()))

    def _document(self) -> dict[str, Any]:
        serving = self.service.serving
        names = [x.name for x in serving.catalogue.domains] or serving.model.domains
        return openapi_document(self.service.options.limits.rows, names[0])

    async def _classified(self, request: Request, domain: str) -> Response:
        arrived, tops = time.perf_counter_ns(), request.query_params.getlist("top")
        known_keys(request.query_params, ("top",), "the query")
        top = _top(tops)
        self.repository.describe(domain)  # no body is read for a domain that is not there
        kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
        if kind == "multipart/form-data":
            body, most = await self._body(request), self.service.options.limits.rows
            form = read_form(request.headers["content-type"], body, most)
            images = list(form.images)
            top = top if form.top is None else _top([*tops, form.top])
        elif kind.startswith("image/") or kind == "application/octet-stream":
            images = [await self._body(request)]
        else:
            raise HTTPException(415, "send an image (Content-Type: image/…) or multipart files")
        work = self.service.classify(domain, images, top, arrived)
        rows: list[dict[str, Any]] = [
            {
                "class": x.class_name,
                "index": x.index,
                "probability": x.probability,
                "top": [c._asdict() for c in x.top],
            }
            for x in await unless_gone(request, work)
        ]
        return JSONResponse({"domain": domain, "predictions": rows})

    async def _body(self, request: Request) -> bytes:
        limits = self.service.options.limits
        body = await read_body(request, limits)
        return unpacked(body, request.headers.get("content-encoding", ""), limits.body)


def _top(texts: list[str]) -> int:
    if len(texts) > 1:
        raise InputError("top is given more than once: give it once")
    text = texts[0] if texts else "5"
    if not text.isascii() or not text.isdigit() or not 1 <= len(text) <= 6 or int(text) < 1:
        raise InputError(f"top is {shown(text)}: give a whole number of 1 or more")
    return int(text)

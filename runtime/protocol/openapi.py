"""The HTTP interface as OpenAPI tells it, and as a page that needs nothing from elsewhere."""

from __future__ import annotations

import html
from importlib import metadata
from typing import Any

__all__ = ["openapi_document", "openapi_page"]

ERROR = {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}}
NAME = {"name": "name", "in": "path", "required": True, "schema": {"type": "string"}}
EMPTY = ""  # the media type of an answer that is its status alone
TOP = {
    "name": "top",
    "in": "query",
    "description": "how many classes each answer holds",
    "schema": {"type": "integer", "minimum": 1, "maximum": 999999, "default": 5},
}
PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>prunion: the HTTP interface</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>body{{font:16px/1.5 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem}}
code{{font:14px/1.5 ui-monospace,monospace}}dt{{margin-top:1rem}}
:root{{color-scheme:light dark}}</style></head>
<body><h1>prunion {version}</h1>
<p>For programs: <a href="openapi.json">openapi.json</a>.</p>
<dl>
{rows}
</dl></body></html>
"""


def openapi_document(rows: int, example: str) -> dict[str, Any]:
    """The OpenAPI 3.1 description; `rows` is how many images a request may hold, `example` a
    domain that there is."""
    models = {
        "": ("get", "A model's inputs, outputs and domains"),
        "/ready": ("get", "200 if the model answers"),
        "/config": ("get", "What of Triton's configuration applies"),
        "/stats": ("get", "Counts and times of the model"),
    }
    paths: dict[str, Any] = {
        "/v2": {"get": _call("The server's name, version and extensions")},
        "/v2/health/live": {"get": _call("200 while the server runs", answer=EMPTY)},
        "/v2/health/ready": {
            "get": _call("200 if requests are wanted, 503 if it is stopping", answer=EMPTY)
        },
        "/v2/models/stats": {"get": _call("Counts and times of all models")},
        "/v2/repository/index": {
            "post": _call("All models: the bundle and its domains", _json({"type": "object"}))
        },
        "/metrics": {"get": _call("Prometheus metrics", answer="text/plain")},
        "/v1/activity": {
            "get": _call("What was answered so far, how long it took, the last batches")
        },
        "/v1/domains": {"get": _call("The domains")},
        "/v1/domains/{name}": {"get": _call("The classes of a domain", named=True)},
        "/v1/domains/{name}:classify": {"post": _classify()},
    }
    for end in ("load", "unload"):
        text = f"{end.capitalize()} a domain's pack, if the server was started with --control"
        paths[f"/v2/repository/models/{{name}}/{end}"] = {
            "post": _call(text, _json({"type": "object"}), EMPTY, named=True)
        }
    for end, (method, text) in models.items():
        answer = EMPTY if end == "/ready" else "application/json"
        paths[f"/v2/models/{{name}}{end}"] = {method: _call(text, answer=answer, named=True)}
    text = "Logits, or the best classes, of images"
    paths["/v2/models/{name}/infer"] = {"post": _call(text, _json(_infer(rows)), named=True)}
    for path in paths.values():
        for call in path.values():
            if "parameters" in call:
                named = {**NAME, "example": example}
                call["parameters"] = [named if x is NAME else x for x in call["parameters"]]
    return {
        "openapi": "3.1.0",
        "info": {"title": "prunion", "version": metadata.version("prunion")},
        "paths": paths,
    }


def openapi_page(value: dict[str, Any]) -> str:
    """The same as HTML."""
    rows = [
        f"<dt><code>{method.upper()} {html.escape(path)}</code></dt>"
        f"<dd>{html.escape(call['summary'])}</dd>"
        for path, calls in value["paths"].items()
        for method, call in calls.items()
    ]
    return PAGE.format(version=html.escape(value["info"]["version"]), rows="\n".join(rows))


def _call(
    summary: str, body: Any = None, answer: str = "application/json", named: bool = False
) -> dict[str, Any]:
    error = {"description": "what is wrong", "content": {"application/json": {"schema": ERROR}}}
    found: dict[str, Any] = {
        "summary": summary,
        "responses": {"200": {"description": "done"}, "default": error},
    }
    if answer:
        found["responses"]["200"]["content"] = {answer: {}}
    if body is not None:
        found["requestBody"] = body
    if named:
        found["parameters"] = [NAME]
    return found


def _json(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _classify() -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    files = {"type": "object", "additionalProperties": binary["schema"]}
    body = {
        "required": True,
        "content": {"image/*": binary, "multipart/form-data": {"schema": files}},
    }
    found = _call("The best classes of image files", body, named=True)
    found["parameters"] = [NAME, TOP]
    return found


def _infer(rows: int) -> dict[str, Any]:
    shape = {"type": "array", "items": {"type": "integer", "minimum": 0}}
    tensor = {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"enum": ["image", "domain"]},
            "shape": {**shape, "description": f"first the number of images, 1 to {rows}"},
            "datatype": {"enum": ["FP32", "FP16", "UINT8", "INT64", "BYTES"]},
            "parameters": {"type": "object"},
            "data": {"type": "array"},
        },
    }
    output = {
        "type": "object",
        "required": ["name"],
        "properties": {"name": {"const": "logits"}, "parameters": {"type": "object"}},
    }
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string"},
            "parameters": {"type": "object"},
            "inputs": {"type": "array", "items": tensor},
            "outputs": {"type": "array", "items": output},
        },
    }

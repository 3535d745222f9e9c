"""The HTTP side for tests: in process, or listening in a thread with limits one can wait for."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from prunion.runtime.model import Model

pytest.importorskip("onnxruntime")
uvicorn = pytest.importorskip("uvicorn", reason="needs prunion[serve]")
testclient = pytest.importorskip("starlette.testclient", reason="needs prunion[serve] and httpx")
from prunion.runtime.serve import Limits, ServeOptions  # noqa: E402
from prunion.runtime.serve.guard import ApiKeys, Gate  # noqa: E402
from prunion.runtime.serve.http.app import http_app  # noqa: E402
from prunion.runtime.serve.http.connections import protocol_of  # noqa: E402
from prunion.runtime.serve.service import Service  # noqa: E402

INFER = "/v2/models/toy/infer"
LIMITS = Limits(body=1 << 20, json=1 << 19, rows=8, max_pixels=100_000, body_seconds=0.3)


def client_of(
    model: Model, limits: Limits = LIMITS, keys: ApiKeys | None = None, **options: Any
) -> Any:
    service = Service(model, ServeOptions(limits=limits, **options))
    gate = Gate(limits.requests, limits.client_requests)
    client = testclient.TestClient(http_app(service, gate, keys), raise_server_exceptions=False)
    client.service, client.gate = service, gate
    return client


def body(rows: int = 1) -> dict[str, Any]:
    image = {
        "name": "image",
        "datatype": "FP32",
        "shape": [rows, 3, 12, 10],
        "data": [0.0] * (360 * rows),
    }
    domain = {"name": "domain", "datatype": "INT64", "shape": [rows], "data": [0] * rows}
    return {"inputs": [image, domain]}


@contextlib.contextmanager
def listening(service: Service, limits: Limits) -> Iterator[int]:
    """The HTTP side alone, in a thread, with limits that a test can wait for."""
    gate = Gate(limits.requests, limits.client_requests)
    config = uvicorn.Config(
        http_app(service, gate),
        port=0,
        http=protocol_of(limits),
        log_config=None,
        lifespan="off",
        timeout_keep_alive=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(5)

"""The HTTP side for tests: in process, or listening in a thread with limits one can wait for."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from typing import Any

import pytest

from prunion.runtime.model import Model
from tests.support.waiting import LONG, until

pytest.importorskip("onnxruntime")
uvicorn = pytest.importorskip("uvicorn", reason="needs prunion[serve]")
testclient = pytest.importorskip("starlette.testclient", reason="needs prunion[serve] and httpx")
from prunion.runtime.serve import Limits, ServeOptions  # noqa: E402
from prunion.runtime.serve.guard import ApiKeys, Gate  # noqa: E402
from prunion.runtime.serve.http.app import http_app  # noqa: E402
from prunion.runtime.serve.http.connections import protocol_of  # noqa: E402
from prunion.runtime.serve.http.door import Door  # noqa: E402
from prunion.runtime.serve.models.service import Service  # noqa: E402

INFER = "/v2/models/toy/infer"
LIMITS = Limits(body=1 << 20, json=1 << 19, rows=8, max_pixels=100_000)


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


@dataclass(frozen=True)
class Listening:
    """The HTTP side alone: its port, what counts its requests, and its connections."""

    port: int
    gate: Gate
    connections: Sized

    def rest(self) -> None:
        """Wait until nobody is inside: an answer is here before the server is done with it."""
        until(lambda: not self.gate.inside)

    def empty(self) -> None:
        """Wait until nobody is connected: a client has closed before the server knows of it."""
        until(lambda: not self.connections)


@contextlib.contextmanager
def listening(service: Service, limits: Limits, *, door: bool = False) -> Iterator[Listening]:
    """The HTTP side alone, in a thread, with limits that a test can wait for."""
    gate = Gate(limits.requests, limits.client_requests)
    config = uvicorn.Config(
        http_app(service, gate),
        port=0,
        http=protocol_of(limits, Door(gate, service) if door else None),
        log_config=None,
        lifespan="off",
        timeout_keep_alive=int(2 * LONG),
        timeout_graceful_shutdown=1,
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()), daemon=True)
    thread.start()
    until(lambda: server.started)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield Listening(port, gate, server.server_state.connections)
    finally:
        server.should_exit = True
        thread.join(LONG)
        assert not thread.is_alive()


def drip(found: socket.socket, parts: Iterable[bytes]) -> None:
    """Send the parts one by one until the server closes. Raises AssertionError if it does not.

    A part every 20th of a second: whoever waits anew after each of them waits for ever.
    """
    end = time.monotonic() + LONG
    with contextlib.suppress(ConnectionError):
        for part in parts:
            assert time.monotonic() < end, "it is still open"
            found.sendall(part)
            time.sleep(0.05)
        raise AssertionError("it took all of it")

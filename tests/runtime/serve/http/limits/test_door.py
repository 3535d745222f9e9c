"""What is too much is refused before it is read: at once, and without losing the connection."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from prunion.runtime.model import load

pytest.importorskip("onnxruntime")
uvicorn = pytest.importorskip("uvicorn", reason="needs prunion[serve]")
from prunion.runtime.serve import Gate, Limits, ServeOptions, Service  # noqa: E402
from prunion.runtime.serve.http.door import Door  # noqa: E402
from prunion.runtime.serve.models.serving import GRAPHS, load_model  # noqa: E402
from prunion.runtime.serve.options import LoadOptions  # noqa: E402
from tests.runtime.serve.http.asking import Listening, drip  # noqa: E402
from tests.runtime.serve.http.asking import listening as served  # noqa: E402
from tests.support.waiting import LONG  # noqa: E402

INFER = "/v2/models/toy/infer"
CLIENT = "127.0.0.1"


def body() -> bytes:
    image = {"name": "image", "datatype": "FP32", "shape": [1, 3, 12, 10], "data": [0.0] * 360}
    domain = {"name": "domain", "datatype": "INT64", "shape": [1], "data": [0]}
    return json.dumps({"inputs": [image, domain]}).encode()


@contextlib.contextmanager
def listening(bundle: Path, limits: Limits) -> Iterator[tuple[Listening, Service]]:
    with load(bundle, "cpu", threads=1) as model:
        service = Service(model, ServeOptions(limits=limits))
        with served(service, limits, door=True) as server:
            yield server, service


def post(connection: http.client.HTTPConnection, data: bytes) -> tuple[int, dict[str, object]]:
    connection.request("POST", INFER, data)
    answer = connection.getresponse()
    assert answer.status == 200 or int(answer.headers["retry-after"]) >= 1
    return answer.status, json.loads(answer.read())


def test_a_refusal_keeps_the_connection(bundle_path: Path) -> None:
    limits = Limits(requests=2, client_requests=1, body=8 << 20)
    with listening(bundle_path, limits) as (server, service):
        gate = server.gate
        kept = http.client.HTTPConnection(CLIENT, server.port, timeout=LONG)
        assert post(kept, body())[0] == 200
        own = kept.sock
        server.rest()
        with gate.enter(CLIENT):
            status, value = post(kept, body())
            assert status == 429 and "wait for them" in str(value["error"])
            with gate.enter("another"):
                assert post(kept, body())[0] == 503
                # What comes in many pieces is thrown away to its end.
                assert post(kept, body() + b" " * (4 << 20))[0] == 503
        assert post(kept, body())[0] == 200
        assert kept.sock is own, "nobody had to connect anew"
        assert service.statistics.refused == {"client": 1, "requests": 2}
        server.rest()
        with gate.enter(CLIENT), gate.enter("another"):
            for path in ("/v2/health/ready", "/v2/health/live"):
                kept.request("GET", path)
                answer = kept.getresponse()
                assert answer.status == 200, "an orchestrator is let in"
                answer.read()
        kept.close()


@pytest.mark.parametrize("later", [b"", b" " * 100], ids=["whole", "in parts"])
def test_the_head_after_a_refusal_has_no_more_time_than_the_first(
    bundle_path: Path, later: bytes
) -> None:
    """An idle connection may stay for long; one on which a head has begun may not."""
    limits = Limits(requests=1, header_seconds=0.3, idle_seconds=10 * LONG)
    with (
        listening(bundle_path, limits) as (server, _),
        socket.create_connection((CLIENT, server.port), timeout=LONG) as found,
    ):
        text = body() + later
        head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(text)}\r\n\r\n".encode()
        with server.gate.enter("another"):
            found.sendall(head + text[: len(body())])
            assert found.recv(1 << 16).startswith(b"HTTP/1.1 503")
            found.sendall(later)
            time.sleep(0.5)  # idle, as it may be
            begun, whole = time.monotonic(), [head[n : n + 1] for n in range(len(head) - 2)]
            parts = itertools.chain(whole, [b"x: "], itertools.repeat(b"y", 9999))
            drip(found, parts)
        assert time.monotonic() - begun > 0.2


@pytest.mark.parametrize("field", ["requests", "client_requests"])
def test_requests_behind_one_another_are_never_one_too_many(bundle_path: Path, field: str) -> None:
    """Of those of one connection the next begins when the one before is out of the gate."""
    limits = Limits(**{field: 1})
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body())}\r\n\r\n".encode()
    with (
        listening(bundle_path, limits) as (server, service),
        socket.create_connection((CLIENT, server.port), timeout=LONG) as found,
    ):
        found.sendall((head + body()) * 4)
        text = b""
        while text.count(b"HTTP/1.1 ") < 4:
            text += found.recv(1 << 16)
        assert text.count(b"HTTP/1.1 200") == 4
        assert not service.statistics.refused


def test_what_arrives_together_is_counted_together(bundle_path: Path) -> None:
    """Requests of one turn of the event loop have not entered when the next is looked at."""
    limits = Limits(requests=100, client_requests=3)
    with load(bundle_path, "cpu", threads=1) as model:
        service = Service(model, ServeOptions(limits=limits))
        gate = Gate(limits.requests, limits.client_requests)
        door = Door(gate, service)
    head = f"POST {INFER} HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\n".encode()

    async def run() -> None:
        assert [door.refuse(CLIENT, head + b"body") is None for _ in range(5)] == [True] * 3 + [
            False
        ] * 2
        await asyncio.sleep(0)
        assert not door.coming

    asyncio.run(run())


@pytest.mark.parametrize(
    ("head", "refused"),
    [
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\n", True),
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbo", True),
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbody", True),
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\n\r\nbodyGET /", False),
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\n", False),
        (b"POST / HTTP/1.0\r\nContent-Length: 4\r\n\r\n", False),
        (b"GET /metrics HTTP/1.1\r\n\r\n", False),
        (b"POST / HTTP/1.1\r\n\r\n", False),
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\n", False),
        (b"POST / HTTP/1.1\r\nContent-Length: 99999999999\r\n\r\n", False),
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n", False),
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n", False),
        (b"POST / HTTP/1.1\r\nContent-Length: 4\r\nconnection: Close\r\n\r\n", False),
    ],
)
def test_only_what_is_plain_is_refused_at_the_door(
    bundle_path: Path, head: bytes, refused: bool
) -> None:
    """The rest goes the long way, which refuses it as well."""
    with load(bundle_path, "cpu", threads=1) as model:
        service = Service(model)
        door = Door(Gate(0, 1), service)
        assert (door.refuse(CLIENT, head) is not None) is refused
        service.ready = False
        assert door.refuse(CLIENT, head) is None, "who is let in is told to close"


def test_a_server_does_not_take_the_memory_for_its_sessions(bundle_path: Path) -> None:
    with load_model(bundle_path, LoadOptions(backend="cpu")) as model:
        assert model.sessions.limit == GRAPHS * model.sessions.graph.size
    with load_model(bundle_path, LoadOptions(backend="cpu", memory_limit=1 << 40)) as model:
        assert model.sessions.limit == 1 << 40


def test_the_door_reads_no_head_that_others_would_read_otherwise(bundle_path: Path) -> None:
    """Bytes of a body that were taken for a request would be another client's behind a proxy."""
    start = b"POST /x HTTP/1.1\r\nHost: a\r\n"
    with listening(bundle_path, Limits()) as (server, service), server.gate.enter(CLIENT):
        gate = Gate(0, 0)
        door = Door(gate, service)
        assert door.refuse(CLIENT, start + b"Content-Length: 5\r\n\r\nabc") is not None
        for more in (
            b"X: a\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n",
            b"Content-Length: 5\r\nContent-Length: 5, 6\r\n",
            b"Origin: https://example.org\r\nContent-Length: 5\r\n",
        ):
            assert door.refuse(CLIENT, start + more + b"\r\nabc") is None

"""Connections of strangers: slow, idle, broken off, or no HTTP at all."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import socket
import threading
import time
from dataclasses import replace

import pytest

from prunion.runtime.model import Model

pytest.importorskip("onnxruntime")
uvicorn = pytest.importorskip("uvicorn", reason="needs prunion[serve]")
testclient = pytest.importorskip("starlette.testclient", reason="needs prunion[serve] and httpx")
from prunion.runtime.serve import Limits, ServeOptions  # noqa: E402
from prunion.runtime.serve.http.connections import most_connections  # noqa: E402
from prunion.runtime.serve.models.service import Service  # noqa: E402
from tests.runtime.serve.http.asking import INFER, LIMITS, body, drip, listening  # noqa: E402
from tests.support.waiting import LONG, until  # noqa: E402


def connect(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=LONG)


def closed(found: socket.socket) -> bool:
    """Whether the server closes it, however long a busy machine takes for that."""
    try:
        while found.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_who_expects_100_continue_is_told_before_the_body_is_sent(model: Model) -> None:
    service = Service(model, ServeOptions(limits=LIMITS))
    with listening(service, LIMITS) as server:
        for path, first in ((INFER, b"HTTP/1.1 100"), ("/v2/models/none/infer", b"HTTP/1.1 404")):
            text = json.dumps(body()).encode()
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(text)}\r\n"
            with connect(server.port) as found:
                found.sendall(f"{head}expect: 100-continue\r\n\r\n".encode())
                assert found.recv(1 << 16).startswith(first)
                if first.endswith(b"100"):
                    found.sendall(text)
                    assert found.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_slow_clients_are_let_go(model: Model) -> None:
    forever = 10 * LONG  # so that nothing but the limit that is looked at lets anybody go
    limits = replace(LIMITS, header_seconds=0.2, body_seconds=forever, idle_seconds=forever)
    service = Service(model, ServeOptions(limits=limits))
    with (
        listening(service, limits) as server,
        connect(server.port) as silent,
        connect(server.port) as slow,
    ):
        slow.sendall(b"GET /v2 HTTP/1.1\r\nhost: x\r\n")
        assert closed(silent) and closed(slow)
    limits = replace(limits, header_seconds=forever, body_seconds=0.2)
    service = Service(model, ServeOptions(limits=limits))
    with listening(service, limits) as server, connect(server.port) as stalled:
        head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{{"
        stalled.sendall(head.encode())
        assert stalled.recv(100).startswith(b"HTTP/1.1 408")


def test_only_so_many_connections(model: Model) -> None:
    limits = replace(LIMITS, connections=3)
    service = Service(model, ServeOptions(limits=limits))
    with listening(service, limits) as server:
        with contextlib.ExitStack() as held:
            for _ in range(3):
                one = held.enter_context(connect(server.port))
                one.sendall(b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n")
                assert one.recv(4096).startswith(b"HTTP/1.1 200")
            more = held.enter_context(connect(server.port))
            text = more.recv(4096)
            assert text.startswith(b"HTTP/1.1 503") and b"too many connections" in text
        server.empty()
        kept = http.client.HTTPConnection("127.0.0.1", server.port, timeout=LONG)
        kept.connect()
        own = kept.sock
        for _ in range(3):
            kept.request("GET", "/v2")
            assert kept.getresponse().read()
        assert kept.sock is own, "it stays open between requests"
        kept.close()


def test_what_cannot_be_read_as_http_gets_an_error_like_every_other(model: Model) -> None:
    service = Service(model, ServeOptions(limits=LIMITS))
    with listening(service, LIMITS) as server:

        def ask(*parts: bytes) -> tuple[bytes, bytes]:
            with connect(server.port) as found:
                for part in parts:
                    found.sendall(part)
                    time.sleep(0.05)
                data = b""
                while more := found.recv(1 << 16):
                    data += more
            head, _, rest = data.partition(b"\r\n\r\n")
            return head.split(b"\r\n")[0], rest

        start = f"POST {INFER} HTTP/1.1\r\nhost: x\r\n".encode()
        for parts in (
            (b"GET /v2\r\n\r\n",),
            (b"\x16\x03\x01\x02\0\x01\0\x01",),
            (start, b"content-length: -1\r\n\r\n"),
            (start, b"transfer-encoding: chunked\r\n\r\n", b"zz\r\n{}"),  # while it is read
        ):
            line, rest = ask(*parts)
            assert line.startswith(b"HTTP/1.1 400") and "HTTP/1.1" in json.loads(rest)["error"]
        upgrade = b"connection: upgrade, close\r\nupgrade: websocket\r\n\r\n"
        line, rest = ask(b"GET /v2 HTTP/1.1\r\nhost: x\r\n" + upgrade)
        assert line.startswith(b"HTTP/1.1 200") and json.loads(rest)["name"] == "prunion"


def test_a_body_that_nobody_wants_does_not_hold_its_connection(model: Model) -> None:
    limits = replace(LIMITS, body_seconds=0.4)
    service = Service(model, ServeOptions(limits=limits))
    with listening(service, limits) as server, connect(server.port) as found:
        found.sendall(
            b"POST /v2/models/none/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n"
        )
        assert found.recv(1 << 16).startswith(b"HTTP/1.1 404")
        drip(found, itertools.repeat(b"x", 9999))


def test_descriptors_bound_the_connections() -> None:
    assert 1 <= most_connections(Limits(connections=10**9)) < 10**9


def test_a_client_that_hangs_up_leaves_the_queue(model: Model) -> None:
    limits = LIMITS
    service = Service(model, ServeOptions(limits=limits))
    go = threading.Event()
    answer = model.answer
    service.serving.batcher.model = type(
        "Held", (), {"answer": lambda self, *a: go.wait(LONG) and answer(*a)}
    )()
    text = json.dumps(body()).encode()
    head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(text)}\r\n\r\n".encode()
    with listening(service, limits) as server:
        sockets = [connect(server.port) for _ in range(3)]
        batcher = service.serving.batcher
        sockets[0].sendall(head + text)
        until(lambda: batcher._running == 1)
        for one in sockets[1:]:
            one.sendall(head + text)
        until(lambda: batcher.rows == 3)
        for one in sockets[1:]:
            one.close()
        until(lambda: batcher.rows == 1)
        go.set()
        assert sockets[0].recv(100).startswith(b"HTTP/1.1 200")
        sockets[0].close()
    assert service.statistics.total.inference_count == 1

"""A plain POST goes past h11 and is answered as if it had not."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from prunion.runtime.errors import InputError
from prunion.runtime.model import load
from prunion.runtime.protocol.tensors import raw_tensor

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
from prunion.runtime.serve import Limits, ServeOptions, Service
from prunion.runtime.serve.http import connections
from prunion.runtime.serve.http.lane import MOST, plain_head
from tests.runtime.serve.http.asking import listening as served
from tests.support.waiting import LONG

INFER = "/v2/models/toy/infer"
START = b"POST /x HTTP/1.1\r\nHost: a\r\n"
# A header that is not plain, and means nothing: its request is h11's.
ODD = b"x-note: \xe4\r\n"


def body() -> bytes:
    image = {"name": "image", "datatype": "FP32", "shape": [1, 3, 12, 10], "data": [0.5] * 360}
    domain = {"name": "domain", "datatype": "INT64", "shape": [1], "data": [0]}
    return json.dumps({"inputs": [image, domain]}).encode()


def post(text: bytes, path: str = INFER, more: bytes = b"") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nX-Request-ID: 7\r\nContent-Length: {len(text)}\r\n"
    return head.encode() + more + b"\r\n" + text


@contextlib.contextmanager
def listening(bundle: Path, limits: Limits | None = None) -> Iterator[int]:
    limits = limits or Limits()
    with load(bundle, "cpu", threads=1) as model:
        service = Service(model, ServeOptions(limits=limits))
        with served(service, limits) as server:
            yield server.port


def answer(found: socket.socket, rest: bytes = b"") -> tuple[int, dict[bytes, bytes], bytes, bytes]:
    """Status, headers and body of one answer, and what came after it."""
    data = rest
    while b"\r\n\r\n" not in data:
        part = found.recv(1 << 16)
        assert part, data
        data += part
    head, _, data = data.partition(b"\r\n\r\n")
    first, *lines = head.split(b"\r\n")
    headers = dict(line.lower().split(b": ", 1) for line in lines)
    size = int(headers[b"content-length"])
    while len(data) < size:
        part = found.recv(1 << 16)
        assert part, "it breaks off"
        data += part
    return int(first.split()[1]), headers, data[:size], data[size:]


def test_a_plain_head_is_read_whole() -> None:
    head = plain_head(START + b"Content-Length:  5 \r\nX-A:\t b c \r\nx-a:\r\n\r\nbody!")
    assert head is not None
    assert (head.target, head.length) == (b"/x", 5)
    assert head.headers[1:] == [(b"content-length", b"5"), (b"x-a", b"b c"), (b"x-a", b"")]
    assert plain_head(START + b"content-length: 0\r\nConnection: Keep-Alive\r\n\r\n") is not None


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\r\n\r\n",
        START,
        START + b"\r\n",
        START + b"content-length: 5\r\n",
        START + b"content-length: -5\r\n\r\n",
        START + b"content-length: 5, 5\r\n\r\n",
        START + b"content-length: " + b"9" * 19 + b"\r\n\r\n",
        START + b"content-length: 5\r\ncontent-length: 5\r\n\r\n",
        START + b"content-length: 5\r\nhost: b\r\n\r\n",
        START + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
        START + b"content-length: 5\r\nexpect: 100-continue\r\n\r\n",
        START + b"content-length: 5\r\nconnection: close\r\n\r\n",
        START + b"content-length: 5\r\nconnection: upgrade\r\nupgrade: h2c\r\n\r\n",
        START + b"content-length: 5\r\nx-a: b\r\n c\r\n\r\n",  # a folded line
        START + b"content-length : 5\r\n\r\n",
        START + b"content-length: 5\r\nx-a: \0\r\n\r\n",
        START + b"content-length: 5\nx-a: b\r\n\r\n",
        START + b"content-length: 5\r\n" + ODD + b"\r\n",
        START + b"content-length: 5\r\nx-a: " + b"b" * MOST + b"\r\n\r\n",
        b"POST /x HTTP/1.1\r\ncontent-length: 5\r\n\r\n",
        b"POST /x HTTP/1.0\r\nhost: a\r\ncontent-length: 5\r\n\r\n",
        b"POST x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n",
        b"POST /x  HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n",
        b"GET /x HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n",
    ],
)
def test_what_is_more_than_plain_is_left_alone(data: bytes) -> None:
    assert plain_head(data) is None


def test_both_ways_give_one_answer(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain: list[bool] = []

    def looked(data: bytes) -> Any:
        found = plain_head(data)
        plain.append(found is not None)
        return found

    monkeypatch.setattr(connections, "plain_head", looked)
    requests = [
        (INFER, body(), 200),
        (INFER, b"{}", 400),
        (INFER, b"", 400),
        (INFER + "?a=b", body(), 200),
        ("/v2/models/%74oy/infer", body(), 200),
        ("/v2/models/none/infer", body(), 404),
        ("/v2/models/toy/versions/2/infer", body(), 404),
        ("/v2/models/toy/versions/1/infer", body(), 200),
        ("/v2/repository/index", b"{}", 200),
        ("/v2", b"", 405),
        ("/nothing", b"x", 404),
    ]
    with listening(bundle_path) as port, socket.create_connection(("127.0.0.1", port)) as found:
        found.settimeout(LONG)
        for path, text, status in requests:
            both = []
            for more in (b"", ODD):
                found.sendall(post(text, path, more))
                code, headers, content, rest = answer(found)
                assert not rest
                headers.pop(b"date")
                both.append((code, headers, content))
            assert both[0] == both[1]
            assert both[0][0] == status and both[0][1][b"x-request-id"] == b"7"
    assert plain == [True, False] * len(requests)


def test_requests_may_come_in_pieces_and_together(bundle_path: Path) -> None:
    with listening(bundle_path) as port, socket.create_connection(("127.0.0.1", port)) as found:
        found.settimeout(LONG)
        text = post(body())
        for place in (10, text.index(b"\r\n\r\n") + 2, text.index(b"\r\n\r\n") + 4, len(text) - 1):
            found.sendall(text[:place])
            time.sleep(0.05)
            found.sendall(text[place:])
            assert answer(found)[0] == 200
        # One after the other without waiting, h11's between; the last one's head breaks off.
        odd = post(body(), more=ODD)
        found.sendall(text + text + odd + text + b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n" + text[:9])
        rest, codes = b"", []
        for _ in range(5):
            code, _, content, rest = answer(found, rest)
            codes.append(code)
        assert codes == [200] * 5 and json.loads(content)["name"] == "prunion"
        found.sendall(text[9:])
        assert answer(found, rest)[0] == 200


def test_a_body_that_is_not_read_is_thrown_away(bundle_path: Path) -> None:
    with listening(bundle_path) as port, socket.create_connection(("127.0.0.1", port)) as found:
        found.settimeout(LONG)
        text = post(b"x" * (1 << 20), "/v2/models/none/infer")
        found.sendall(text[:1000])
        assert answer(found)[0] == 404
        found.sendall(text[1000:] + post(body()))
        assert answer(found)[0] == 200, "the connection is as good as new"


def test_a_slow_body_is_refused_and_its_connection_closed(bundle_path: Path) -> None:
    limits = Limits(body_seconds=0.3)
    with (
        listening(bundle_path, limits) as port,
        socket.create_connection(("127.0.0.1", port)) as found,
    ):
        found.settimeout(LONG)
        found.sendall(post(body())[:-1])
        code, headers, _, _ = answer(found)
        assert code == 408 and headers[b"connection"] == b"close"
        assert found.recv(100) == b""


def test_who_hangs_up_in_the_middle_of_a_body_is_forgotten(bundle_path: Path) -> None:
    with listening(bundle_path) as port:
        for data in (post(body())[:-1], post(body())):
            with socket.create_connection(("127.0.0.1", port)) as found:
                found.sendall(data)
        with socket.create_connection(("127.0.0.1", port)) as found:
            found.settimeout(LONG)
            found.sendall(post(body()))
            assert answer(found)[0] == 200


def test_a_bug_is_told_without_its_text(bundle_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("at /home/somebody")

    monkeypatch.setattr(Service, "infer", broken)
    with listening(bundle_path) as port, socket.create_connection(("127.0.0.1", port)) as found:
        found.settimeout(LONG)
        for _ in range(2):  # who has a whole answer keeps its connection
            found.sendall(post(body()))
            code, _, content, rest = answer(found)
            assert code == 500 and b"home" not in content and not rest


def test_a_client_that_reads_no_answers_is_cut_off(bundle_path: Path) -> None:
    """Its requests would stay among those that are inside, and keep others out."""
    with listening(bundle_path, Limits(body_seconds=0.3)) as port, socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(LONG)
        client.connect(("127.0.0.1", port))
        with pytest.raises(ConnectionError):
            for _ in range(200):
                client.sendall(post(b"{}") * 500)


def test_elements_that_become_objects_are_bounded() -> None:
    """A million empty texts take four bytes each to send."""
    with pytest.raises(InputError, match="holds 6 values"):
        raw_tensor("image", "BYTES", (5,), bytes(4 << 20))
    for kind, size in (("BYTES", 4), ("INT64", 8)):
        with pytest.raises(InputError, match="at most 65,536 elements"):
            raw_tensor("image", kind, (1 << 20,), bytes(size << 20))


def test_a_target_may_be_a_whole_url(bundle_path: Path) -> None:
    with listening(bundle_path) as port, socket.create_connection(("127.0.0.1", port)) as found:
        for target in ("http://a/v2", "HTTP://b:8/v2/models/toy?x=1", "http://c/v2/health/live"):
            found.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            assert answer(found)[0] == 200
        found.sendall(post(body(), f"http://a{INFER}"))
        assert answer(found)[0] == 200
        found.sendall(b"GET http://a HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer(found)[0] == 200, "the page"

"""Whole HTTP requests that are wrong, as the bytes of a connection; and what comes back of them."""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from random import Random

from tests.runtime.serve.malformed import bodies
from tests.runtime.serve.malformed.bodies import Body, damaged

INFER = "/v2/models/toy/infer"
CLASSIFY = "/v1/domains/signs:classify"
PATHS = (
    "/", "/v2", "/v2/", "//v2", "/v2/../v2", "/v2/%2e%2e/etc/passwd", "/v2/models/toy", "/metrics",
    "/v2/models/%00", "/v2/models/%ff%fe", "/v2/models/%ud800", "/v2/models/%", "/v2/models/%zz",
    "/v2/models/../../etc/passwd/infer", "/v2/models/toy/versions/2", "/v2/models/toy/versions/-1",
    "/v2/models/toy/versions/1e9/infer", "/v2/models/toy/versions//infer", "/v2/models//infer",
    "/v2/models/toy/versions/1/versions/1", "/v2/models/" + "a" * 5000,
    "/v2/models/%F0%9D%92%B3/stats", "/v1/domains/", "/v1/domains/:classify", "/v1/domains/..",
    "/v1/domains/signs%2F..%2Fflowers:classify", "/v1/domains/signs:classify:classify", "/docs/..",
    CLASSIFY + "?top=0", CLASSIFY + "?top=-1", CLASSIFY + "?top=99999999", CLASSIFY + "?top=٣",
    CLASSIFY + "?top=1&top=2", CLASSIFY + "?top=%00", CLASSIFY + "?" + "a=1&" * 2000, "/predict/",
    "/v2/repository/models/signs/load", "/v2/repository/models/toy/unload", "/v2/repository/index",
    "/v2/repository/models/..%2F..%2Fx/load", "/openapi.json?x=%ff", "*", "http://x/v2", "v2", "",
    "/v2/models/stats", "/v2/models/toy/versions/1/stats", "/v2/models/signs/config", "/v2#x",
    "/v2/health/live/x", "/v2/health/ready?x", "/static/../../../etc/passwd", "/favicon.ico",
)  # fmt: skip
METHODS = (
    "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "PRI",
    "PROPFIND", "A" * 500, "GE T", "", "\0", "P\xd6ST",
)  # fmt: skip
HEADERS = (
    "Host:", "Host: a\r\nHost: b", "Host: [::1", "X: " + "y" * 5000, "X: " + "y" * 70_000,
    "\r\n".join(f"X-{n}: y" for n in range(150)), "Bad Name: x", "X:\0", "X : y", ": y", "é: é",
    "X: a\r\n folded", "Expect: 100-continue", "Expect: 200-maybe", "Upgrade: websocket",
    "Connection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__", "Connection: close",
    "Connection: keep-alive, close, x", "X-Request-ID: \x01\x02", "X-Request-ID: " + "a" * 400,
    "Content-Type: ;;;", "Content-Type: multipart/form-data", "Content-Type: image/png; x=\"",
    "Authorization: Bearer", "Authorization: \xff", "Accept: x/y", "Accept-Encoding: gzip;q=x",
    "Content-Encoding: gzip", "Content-Encoding: gzip\r\nContent-Encoding: deflate",
    "traceparent: 00-0-0-0", "traceparent: " + "f" * 300, "Range: bytes=0-1", "Cookie: \x7f",
    "Inference-Header-Content-Length: 1\r\nInference-Header-Content-Length: 2", "TE: trailers",
    "X-Forwarded-For: 1.2.3.4, <script>", "Origin: null", "Content-Length: 0\r\nX: y",
)  # fmt: skip
LENGTHS = ("-1", "x", "", "1, 1", "1,2", "+5", "0x5", "1e1", "9" * 30, "10000000000", "5 ", "٣")
CHUNKS = (
    b"5\r\nabc", b"zz\r\nabc\r\n", b"-1\r\n\r\n", b"ffffffffffffffffff\r\nx", b"5\r\nhello6\r\n",
    b"0\r\n\r\n", b"0\r\nX: y\r\n\r\n", b"1;" + b"e" * 9000 + b"\r\na\r\n0\r\n\r\n", b"1\na\n0\n\n",
    b"\r\n" * 50, b"2\r\n{}\r\n0\r\n\r\n", b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\nGET /v2 HTTP/1.1\r\n\r\n",
)  # fmt: skip


@dataclass(frozen=True)
class Wrong:
    """What is sent on a connection.

    Attributes:
        kind: which part of it is wrong; with the seed and the number, enough to make it again.
        end: how the client ends: it waits, sends no more (half-closed), or hangs up at once.
    """

    kind: str
    data: bytes
    end: str = "wait"


@dataclass(frozen=True)
class Outcome:
    """What came back: the status of each answer, all bytes, and after how many seconds."""

    statuses: tuple[int, ...]
    data: bytes
    seconds: float
    closed: bool


def wrong_request(seed: int, number: int) -> Wrong:
    """The same for the same seed and number."""
    random = Random(f"{seed}:{number}")
    kinds: dict[str, tuple[int, Callable[[Random], Wrong]]] = {
        "json": (22, lambda r: _with(r, "json", bodies.json_body(r))),
        "text": (8, lambda r: _with(r, "text", bodies.text_body(r))),
        "binary": (18, lambda r: _with(r, "binary", bodies.binary_body(r))),
        "packed": (7, lambda r: _with(r, "packed", bodies.packed_body(r))),
        "form": (7, lambda r: _with(r, "form", bodies.form_body(r), _classify_path(r))),
        "image": (10, lambda r: _with(r, "image", bodies.image_body(r), _classify_path(r))),
        "path": (8, _path),
        "head": (8, _head),
        "framing": (7, _framing),
        "connection": (5, _connection),
    }
    (kind,) = random.choices(list(kinds), [weight for weight, _ in kinds.values()])
    return kinds[kind][1](random)


def send(port: int, wrong: Wrong, seconds: float) -> Outcome:
    """Send it, and read until the other side closes, or every answer there can be is there."""
    begun, received = time.monotonic(), bytearray()
    with socket.create_connection(("127.0.0.1", port), timeout=seconds) as connection:
        closed = True
        try:
            connection.sendall(wrong.data)
            if wrong.end == "reset":
                return Outcome((), b"", time.monotonic() - begun, True)
            if wrong.end == "half":
                connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(1 << 16):
                received += part
                if time.monotonic() - begun > seconds:
                    closed = False
                    break
        except TimeoutError:
            closed = False
        except OSError:
            pass  # it hung up on us while we sent: an answer as well
    statuses = []
    for line in bytes(received).split(b"HTTP/1.1 ")[1:]:
        with contextlib.suppress(ValueError):
            statuses.append(int(line[:3]))
    return Outcome(tuple(statuses), bytes(received), time.monotonic() - begun, closed)


def _request(
    path: str, body: bytes, headers: dict[str, str], method: str = "POST", version: str = "1.1"
) -> bytes:
    given = {"Host": "x", "Content-Length": str(len(body)), "Connection": "close", **headers}
    lines = [f"{method} {path} HTTP/{version}", *(f"{k}: {v}" for k, v in given.items())]
    return "\r\n".join([*lines, "", ""]).encode() + body


def _classify_path(random: Random) -> str:
    return random.choice((CLASSIFY, CLASSIFY, "/predict/flowers", CLASSIFY + "?top=2", INFER))


def _with(random: Random, kind: str, body: Body, path: str = "") -> Wrong:
    data, headers = body
    paths = (INFER, INFER, INFER, "/v2/models/signs/infer", "/v2/models/toy/versions/1/infer")
    path = path or random.choice((*paths, "/v2/repository/index", CLASSIFY))
    return Wrong(f"{kind} {path}", _request(path, data, headers))


def _path(random: Random) -> Wrong:
    path, body = random.choice(PATHS), json.dumps(bodies.right_request()).encode()
    if random.random() < 0.2:
        path = "/" + damaged(random, path.encode() or b"/").decode("latin-1")
    return Wrong(f"path {path[:60]!r}", _request(path, body, {}, random.choice(METHODS[:7])))


def _head(random: Random) -> Wrong:
    version = random.choice(("1.1", "1.1", "1.0", "0.9", "2.0", "1.2", "x", ""))
    method = random.choice(("POST", "POST", *METHODS))
    body = json.dumps(bodies.right_request()).encode()
    head, _, rest = _request(INFER, body, {}, method, version).partition(b"\r\n\r\n")
    extra = "\r\n".join(random.sample(HEADERS, random.randint(1, 3))).encode("utf-8")
    data = head + b"\r\n" + extra + b"\r\n\r\n" + rest
    if random.random() < 0.2:
        data = damaged(random, data)
    return Wrong("head", data)


def _framing(random: Random) -> Wrong:
    body = json.dumps(bodies.right_request()).encode()
    start = f"POST {INFER} HTTP/{random.choice(('1.1', '1.1', '1.0'))}\r\nHost: x\r\n".encode()
    kind = random.randrange(5)
    if kind == 0:
        length = f"Content-Length: {random.choice(LENGTHS)}\r\n\r\n".encode()
        return Wrong("framing: length", start + length + body)
    if kind == 1:
        length = f"Content-Length: {len(body) + random.choice((-9, -1, 1, 99))}\r\n\r\n".encode()
        return Wrong("framing: other length", start + length + body)
    if kind == 2:
        both = f"Content-Length: {len(body)}\r\nContent-Length: {random.choice(LENGTHS)}\r\n\r\n"
        return Wrong("framing: two lengths", start + both.encode() + body)
    named = random.choice(("chunked", "chunked", "Chunked", "gzip, chunked", "identity", "x", "chunked, chunked"))  # fmt: skip # noqa: E501
    coding = f"Transfer-Encoding: {named}\r\n".encode()
    if kind == 3:
        return Wrong("framing: chunks", start + coding + b"\r\n" + random.choice(CHUNKS))
    both = coding + f"Content-Length: {len(body)}\r\n\r\n".encode()
    return Wrong("framing: chunks and length", start + both + random.choice((*CHUNKS, body)))


def _connection(random: Random) -> Wrong:
    body = json.dumps(bodies.right_request()).encode()
    kept = {"Connection": "keep-alive"}
    right, health = _request(INFER, body, kept), _request("/v2/health/live", b"", kept, "GET")
    data, end = random.choice((
        (b"", "wait"),
        (b"\r\n\r\n", "wait"),
        (b"\0" * 100, "wait"),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", "wait"),
        (b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03" + random.randbytes(200), "wait"),
        (b"GET /v2\r\n\r\n", "wait"),
        (b"GET " * 9000, "wait"),
        (right[: random.randrange(len(right))], "half"),
        (right[: random.randrange(len(right))], "reset"),
        (right[: random.randrange(60)], "wait"),
        (right[:-1], "wait"),
        (right, "reset"),
        (right, "half"),
        (right * 5, "wait"),
        (health * 50, "wait"),
        (right + b"nonsense\r\n\r\n", "wait"),
        (health + right[:-40] + health, "wait"),
    ))  # fmt: skip
    return Wrong("connection", data, end)

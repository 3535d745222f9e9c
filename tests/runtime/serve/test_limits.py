"""What a stranger may not do: sizes, times, counts, keys, and what each refusal says."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import hashlib
import http.client
import io
import json
import socket
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.errors import ConfigError, OverloadError
from prunion.runtime.model import Model, load
from prunion.runtime.model.trials import OFTEN, ROUNDS

pytest.importorskip("onnxruntime")
uvicorn = pytest.importorskip("uvicorn", reason="needs prunion[serve]")
testclient = pytest.importorskip("starlette.testclient", reason="needs prunion[serve] and httpx")
from prunion.runtime.serve import Limits, ServeOptions  # noqa: E402
from prunion.runtime.serve.guard import ApiKeys, Gate, read_keys  # noqa: E402
from prunion.runtime.serve.http.app import http_app  # noqa: E402
from prunion.runtime.serve.http.connections import most_connections, protocol_of  # noqa: E402
from prunion.runtime.serve.service import Service  # noqa: E402

INFER = "/v2/models/toy/infer"
LIMITS = Limits(body=1 << 20, json=1 << 19, rows=8, max_pixels=100_000, body_seconds=0.3)


@pytest.fixture
def model(bundle_path: Path) -> Iterator[Model]:
    with load(bundle_path, backend="cpu", threads=1) as model:
        yield model


def client_of(
    model: Model, limits: Limits = LIMITS, keys: ApiKeys | None = None, **options: Any
) -> Any:
    service = Service(model, ServeOptions(limits=limits, **options))
    gate = Gate(limits.requests, limits.client_requests)
    client = testclient.TestClient(http_app(service, gate, keys), raise_server_exceptions=False)
    client.service, client.gate = service, gate
    return client


@pytest.fixture
def client(model: Model) -> Any:
    return client_of(model)


def body(rows: int = 1) -> dict[str, Any]:
    image = {
        "name": "image",
        "datatype": "FP32",
        "shape": [rows, 3, 12, 10],
        "data": [0.0] * (360 * rows),
    }
    domain = {"name": "domain", "datatype": "INT64", "shape": [rows], "data": [0] * rows}
    return {"inputs": [image, domain]}


def test_a_length_that_is_too_much_is_refused_before_the_body_comes(client: Any) -> None:
    def endless() -> Iterator[bytes]:
        raise AssertionError("the body was asked for")
        yield b""

    answer = client.post(INFER, content=endless(), headers={"content-length": str(10**10)})
    assert answer.status_code == 413 and answer.headers["connection"] == "close"


def test_two_lengths_are_refused(client: Any) -> None:
    headers = {"content-length": "2", "transfer-encoding": "chunked"}
    assert client.post(INFER, content=b"{}", headers=headers).status_code == 400


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "bare"])
def test_packed_bodies(client: Any, encoding: str) -> None:
    text = json.dumps(body()).encode()

    def pack(data: bytes) -> bytes:
        if encoding == "gzip":
            return gzip.compress(data)
        if encoding == "deflate":
            return zlib.compress(data)
        packer = zlib.compressobj(wbits=-15)
        return packer.compress(data) + packer.flush()

    headers = {"content-encoding": "deflate" if encoding == "bare" else encoding}
    post = client.post
    assert post(INFER, content=pack(text), headers=headers).status_code == 200
    assert post(INFER, content=pack(text)[:-9], headers=headers).status_code == 400
    assert post(INFER, content=pack(text) + b"x", headers=headers).status_code == 400
    assert post(INFER, content=b"\xff\xff nonsense", headers=headers).status_code == 400
    bomb = pack(b" " * (50 << 20))
    assert len(bomb) < 1 << 20
    assert post(INFER, content=bomb, headers=headers).status_code == 413


def test_unknown_encodings_are_refused(client: Any) -> None:
    headers = {"content-encoding": "br"}
    assert client.post(INFER, content=b"{}", headers=headers).status_code == 415


def test_json_that_would_fill_the_memory_is_not_parsed(client: Any) -> None:
    started = time.perf_counter()
    many_lists = b'{"inputs": [' + b"[]," * 150_000 + b"[]]}"
    assert client.post(INFER, content=many_lists).status_code == 400
    numbers = b'{"inputs": [' + b"0," * 200_000 + b"0]}"
    assert client.post(INFER, content=numbers).status_code == 400
    long = b'{"id": "' + b"x" * (1 << 19) + b'"}'
    assert client.post(INFER, content=long).status_code == 413
    assert time.perf_counter() - started < 2


@pytest.mark.parametrize(
    "change",
    [
        {"id": "\ud800"},
        {"id": 5},
        {"id": "x" * 5000},
        {"outputs": 5},
        {"outputs": [5]},
        {"outputs": [{"name": "other"}]},
        {"outputs": [{"name": "logits"}, {"name": "logits"}]},
        {"outputs": [{"name": "logits", "parameters": {"classification": "many"}}]},
        {"outputs": [{"name": "logits", "parameters": {"shared_memory_region": "x"}}]},
        {"parameters": 5},
        {"parameters": {"priority": -1}},
        {"parameters": {"timeout": 1.5}},
        {"parameters": {"sequence_id": 7}},
        {"parameters": {"binary_data_output": "yes"}},
    ],
)
def test_what_is_not_understood_is_refused(client: Any, change: dict[str, Any]) -> None:
    text = json.dumps({**body(), **change}).encode()
    answer = client.post(INFER, content=text)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]


@pytest.mark.parametrize("coding", ["utf-8", "utf-16", "utf-32"])
def test_what_is_no_text_is_told_without_the_codec(client: Any, coding: str) -> None:
    text = json.dumps(body()).encode(coding)
    assert client.post(INFER, content=text).status_code == 200
    damaged = text[:500] + b"\xff" * 8 + text[508:]
    for path in (INFER, "/v2/repository/index"):
        answer = client.post(path, content=damaged)
        assert answer.status_code == 400 and "codec" not in answer.text


@pytest.mark.parametrize("length", ["-1", "x", "99999999", "٣", "1e3"])
def test_header_lengths(client: Any, length: str) -> None:
    headers = {"inference-header-content-length": length.encode("utf-8")}
    answer = client.post(INFER, content=json.dumps(body()), headers=headers)
    assert answer.status_code == 400


@pytest.mark.parametrize(
    ("name", "shape", "datatype", "size", "data"),
    [
        ("image", [1, 3, 12, 10], "FP32", 1440, b""),
        ("image", [1, 3, 12, 10], "FP32", 4, b"0000"),
        ("image", [10**18, 3, 12, 10], "FP32", 4, b"0000"),
        ("image", [1 << 31, 12, (1 << 63) - 1, 0], "FP32", 0, b""),
        ("image", [0, 1 << 62, 1 << 62, 3], "UINT8", 0, b""),
        ("image", [1, 3, 12, 10], "FP64", 4, b"0000"),
        ("image", [1], "BYTES", 4, b"\xff\xff\xff\xff"),
        ("image", [1], "BYTES", 3, b"000"),
        ("image", [2], "BYTES", 4, b"\0\0\0\0"),
        ("domain", [1], "INT64", 8, b"\xff" * 8),
        ("image", [1, 3, 12, 10], "FP32", True, b"0"),
    ],
)
def test_binary_tensors_that_do_not_fit(
    client: Any, name: str, shape: list[int], datatype: str, size: Any, data: bytes
) -> None:
    value = body()
    entry = {"name": name, "shape": shape, "datatype": datatype}
    value["inputs"][name == "domain"] = {**entry, "parameters": {"binary_data_size": size}}
    head = json.dumps(value).encode()
    headers = {"inference-header-content-length": str(len(head))}
    answer = client.post(INFER, content=head + data, headers=headers)
    assert answer.status_code in (400, 404), answer.text
    assert "0x" not in answer.text, "no memory addresses"


def test_pixels_and_rows_are_limited(client: Any) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (400, 300)).save(stream, "PNG")
    answer = client.post(
        "/v1/domains/signs:classify",
        content=stream.getvalue(),
        headers={"content-type": "image/png"},
    )
    assert answer.status_code == 400 and "100000 pixels" in answer.json()["error"]
    answer = client.post(INFER, json=body(9))
    assert answer.status_code == 400 and "1 to 8" in answer.json()["error"]


def test_large_files_of_a_form_need_no_disk(model: Model, monkeypatch: Any) -> None:
    def no_disk(*_: Any, **__: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", no_disk)
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "BMP")
    assert stream.tell() > 1 << 20
    client = client_of(model, Limits())
    files = {"a": ("a.bmp", stream.getvalue(), "image/bmp")}
    answer = client.post("/v1/domains/signs:classify", files=files)
    assert answer.status_code == 200, answer.text


def test_overload_is_told_at_once(model: Model) -> None:
    client = client_of(model, replace(LIMITS, requests=2, client_requests=1))
    gate = client.gate
    with gate.enter("testclient"):
        answer = client.post(INFER, json=body())
        assert answer.status_code == 429 and answer.headers["retry-after"] == "1"
        assert client.get("/v2/health/ready").status_code == 200, "an orchestrator is let in"
        with gate.enter("another"):
            answer = client.post(INFER, json=body())
            assert answer.status_code == 503 and int(answer.headers["retry-after"]) >= 1
    assert client.post(INFER, json=body()).status_code == 200
    text = client.get("/metrics").text
    assert 'prunion_refused_total{reason="client"} 1' in text
    assert 'prunion_refused_total{reason="requests"} 1' in text
    assert gate.inside == 0 and not gate.clients


def test_a_full_queue_answers_503(model: Model) -> None:
    client = client_of(model, replace(LIMITS, queue_rows=4))
    answer = client.post(INFER, json=body(5))
    assert answer.status_code == 503 and "queue" in answer.json()["error"]


def test_a_server_that_stops_is_not_ready_and_lets_its_clients_go(client: Any) -> None:
    client.service.ready = False
    assert client.get("/v2/health/live").status_code == 200
    assert client.get("/v2/health/ready").status_code == 503
    assert client.get("/v2/models/toy/ready").status_code == 503
    answer = client.post(INFER, json=body())
    assert answer.status_code == 200 and answer.headers["connection"] == "close"


def test_keys(model: Model, tmp_path: Path) -> None:
    file = tmp_path / "keys"
    digest = hashlib.sha256(b"secret").hexdigest()
    file.write_text(f"# who may ask\nshop {digest}\n")
    client = client_of(model, keys=read_keys(file))
    assert client.get("/v2/health/live").status_code == 200
    for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": f"Bearer {digest}"}):
        answer = client.get("/v2/models/toy", headers=headers)
        assert answer.status_code == 401 and "API key" in answer.json()["error"]
    for headers in ({"authorization": "Bearer secret"}, {"x-api-key": "secret"}):
        assert client.get("/v2/models/toy", headers=headers).status_code == 200
    for text in ("", "# nobody", "shop secret", f"shop {digest[1:]}"):
        file.write_text(text)
        with pytest.raises(ConfigError):
            read_keys(file)


def test_loading_is_off_unless_asked_for(client: Any) -> None:
    answer = client.post("/v2/repository/models/signs/unload", json={})
    assert answer.status_code == 400 and "--control" in answer.json()["error"]
    assert client.get("/v2/models/signs/ready").status_code == 200


def test_pages_of_other_sites(model: Model) -> None:
    """A page that somebody looks at may ask a server that its browser reaches."""
    unload, signs = "/v2/repository/models/signs/unload", "/v2/models/signs/ready"
    client = client_of(model, control=True)
    for origin in ("https://elsewhere.org", "null", "http://testserver.elsewhere.org"):
        answer = client.post(unload, headers={"origin": origin})
        assert answer.status_code == 403 and "--allow-origin" in answer.json()["error"]
        answer = client.get("/v2", headers={"origin": origin})
        assert "access-control-allow-origin" not in answer.headers
    assert client.get(signs).status_code == 200
    assert client.post(unload, headers={"origin": "http://testserver"}).status_code == 200
    client = client_of(model, control=True, allow_origins=("https://mine.org",))
    asked = {"origin": "https://mine.org", "access-control-request-method": "POST"}
    answer = client.options(INFER, headers=asked)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == "https://mine.org"
    answer = client.post(INFER, json=body(), headers={"origin": "https://mine.org"})
    assert answer.headers["access-control-allow-origin"] == "https://mine.org"
    assert client.post(unload, headers={"origin": "https://mine.org"}).status_code == 200


def test_errors_of_ours_tell_a_stranger_nothing(client: Any, monkeypatch: Any) -> None:
    async def broken(*_: Any) -> None:
        raise RuntimeError("at /home/somebody, <object at 0x7f>")

    monkeypatch.setattr(client.service, "infer", broken)
    answer = client.post(INFER, json=body())
    assert (answer.status_code, answer.json()) == (
        500,
        {"error": "internal error: see the server's log"},
    )


def test_ids_of_requests_come_back(client: Any) -> None:
    assert client.get("/v2", headers={"x-request-id": "abc-1"}).headers["x-request-id"] == "abc-1"
    assert len(client.get("/v2", headers={"x-request-id": "a b"}).headers["x-request-id"]) == 32


def test_a_path_cannot_write_lines_of_the_log(client: Any, caplog: Any) -> None:
    with caplog.at_level("INFO", "prunion.serve.requests"):
        client.get("/v2%0a2026-01-01%20INFO%20all%20is%20well%1b[2J%c2%9b")
    (record,) = (x for x in caplog.records if hasattr(x, "fields"))
    assert record.getMessage().isprintable() and record.fields["path"].isprintable()


def test_who_expects_100_continue_is_told_before_the_body_is_sent(model: Model) -> None:
    service = Service(model, ServeOptions(limits=LIMITS))
    with listening(service, LIMITS) as port:
        for path, first in ((INFER, b"HTTP/1.1 100"), ("/v2/models/none/infer", b"HTTP/1.1 404")):
            text = json.dumps(body()).encode()
            head = f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(text)}\r\n"
            with socket.create_connection(("127.0.0.1", port), timeout=5) as found:
                found.sendall(f"{head}expect: 100-continue\r\n\r\n".encode())
                assert found.recv(1 << 16).startswith(first)
                if first.endswith(b"100"):
                    found.sendall(text)
                    assert found.recv(1 << 16).startswith(b"HTTP/1.1 200")


def test_balancers_may_ask_with_head(client: Any) -> None:
    for path in ("/v2/health/ready", "/v2/health/live", "/v2", "/v2/models/toy/ready", "/metrics"):
        answer = client.head(path)
        assert answer.status_code == 200 and not answer.content
    answer = client.options("/v2/models/toy/infer")
    assert answer.status_code == 405 and answer.headers["allow"] == "POST"


def test_metrics_tell_whether_mixed_batches_are_split(client: Any) -> None:
    client.service.serving.batcher.tune()
    value = body(2)
    for row in (0, 1):  # no session is made for a trial, so there must be some
        client.post(
            INFER, json={"inputs": [body()["inputs"][0], {**body()["inputs"][1], "data": [row]}]}
        )
    value["inputs"][1]["data"] = [0, 1]
    for _ in range(OFTEN + 2 * ROUNDS):
        assert client.post(INFER, json=value).status_code == 200
    text = client.get("/metrics").text
    assert "prunion_trials_total 1" in text
    assert 'prunion_splits{rows="2",domains="2"}' in text
    assert 'prunion_mixed_runs_total{way="split"}' in text


def test_pages(client: Any) -> None:
    paths = client.get("/openapi.json").json()["paths"]
    assert "/v1/domains/{name}:classify" in paths and "/v2/models/{name}/infer" in paths
    page = client.get("/docs")
    assert "https://" not in page.text and ":classify" in page.text
    assert client.get("/v1/domains").json()["domains"] == ["flowers", "signs", "digits"]
    assert client.get("/v1/domains/digits").json()["classes"] == ["zero", "one"]
    assert client.get("/v1/domains/x").status_code == 404
    assert client.post("/v1/domains/signs").status_code == 404


def test_decoding_shares_a_budget() -> None:
    from prunion.runtime.batching import Budget

    budget = Budget(10, patience=0.05)
    with budget.hold(8), pytest.raises(OverloadError) as caught, budget.hold(3):
        pass
    assert caught.value.reason == "memory"
    with budget.hold(1000):
        assert budget.left == 0
    assert budget.left == 10


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


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def closed_within(found: socket.socket, seconds: float) -> bool:
    found.settimeout(seconds)
    try:
        while found.recv(1 << 16):
            pass
    except TimeoutError:
        return False
    except ConnectionError:
        pass
    return True


def test_slow_and_idle_clients_are_let_go(model: Model) -> None:
    limits = replace(LIMITS, header_seconds=0.2, connections=3)
    service = Service(model, ServeOptions(limits=limits))
    with listening(service, limits) as port:

        def connect() -> socket.socket:
            return socket.create_connection(("127.0.0.1", port))

        with connect() as silent, connect() as slow:
            slow.sendall(b"GET /v2 HTTP/1.1\r\nhost: x\r\n")
            assert closed_within(silent, 2) and closed_within(slow, 2)
        with connect() as stalled:
            stalled.sendall(
                f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: 99\r\n\r\n{{".encode()
            )
            stalled.settimeout(2)
            assert stalled.recv(100).startswith(b"HTTP/1.1 408")
        with contextlib.ExitStack() as held:
            for _ in range(3):
                one = held.enter_context(connect())
                one.sendall(b"GET /v2 HTTP/1.1\r\nhost: x\r\n\r\n")
                assert one.recv(4096).startswith(b"HTTP/1.1 200")
            more = held.enter_context(connect())
            more.settimeout(2)
            text = more.recv(4096)
            assert text.startswith(b"HTTP/1.1 503") and b"too many connections" in text
        kept = http.client.HTTPConnection("127.0.0.1", port)
        for _ in range(3):
            kept.request("GET", "/v2")
            assert kept.getresponse().read()
        assert kept.sock is not None, "it stays open between requests"
        kept.close()


def test_what_cannot_be_read_as_http_gets_an_error_like_every_other(model: Model) -> None:
    service = Service(model, ServeOptions(limits=LIMITS))
    with listening(service, LIMITS) as port:

        def ask(*parts: bytes) -> tuple[bytes, bytes]:
            with socket.create_connection(("127.0.0.1", port), timeout=5) as found:
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
    with (
        listening(service, limits) as port,
        socket.create_connection(("127.0.0.1", port), timeout=5) as found,
    ):
        found.sendall(
            b"POST /v2/models/none/infer HTTP/1.1\r\nhost: x\r\ncontent-length: 99999\r\n\r\n"
        )
        assert found.recv(1 << 16).startswith(b"HTTP/1.1 404")
        begun = time.monotonic()
        with contextlib.suppress(ConnectionError):
            while time.monotonic() - begun < 4:
                found.sendall(b"x")
                time.sleep(0.05)
        assert time.monotonic() - begun < 3


def test_descriptors_bound_the_connections() -> None:
    assert 1 <= most_connections(Limits(connections=10**9)) < 10**9


def test_a_client_that_hangs_up_leaves_the_queue(model: Model) -> None:
    limits = LIMITS
    service = Service(model, ServeOptions(limits=limits))
    go = threading.Event()
    answer = model.answer
    service.serving.batcher.model = type(
        "Held", (), {"answer": lambda self, *a: go.wait(30) and answer(*a)}
    )()
    text = json.dumps(body()).encode()
    head = f"POST {INFER} HTTP/1.1\r\nhost: x\r\ncontent-length: {len(text)}\r\n\r\n".encode()
    with listening(service, limits) as port:
        sockets = [socket.create_connection(("127.0.0.1", port)) for _ in range(3)]
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
        sockets[0].settimeout(2)
        assert sockets[0].recv(100).startswith(b"HTTP/1.1 200")
        sockets[0].close()
    assert service.statistics.total.inference_count == 1


def test_numbers_that_no_network_can_answer(client: Any) -> None:
    value = body()
    value["inputs"][0]["data"] = [1e38] * 360
    answer = client.post(INFER, json=value)
    assert answer.status_code == 400 and "finite" in answer.json()["error"]
    assert np.isfinite(client.post(INFER, json=body()).json()["outputs"][0]["data"]).all()

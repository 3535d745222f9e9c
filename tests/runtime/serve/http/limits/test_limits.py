"""What is too much of a request, and of all requests together, is refused."""

from __future__ import annotations

import gzip
import io
import json
import time
import zlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.errors import OverloadError
from prunion.runtime.model import Model

pytest.importorskip("onnxruntime")
uvicorn = pytest.importorskip("uvicorn", reason="needs prunion[serve]")
testclient = pytest.importorskip("starlette.testclient", reason="needs prunion[serve] and httpx")
from prunion.runtime.serve import Limits  # noqa: E402
from tests.runtime.serve.http.asking import INFER, LIMITS, body, client_of  # noqa: E402


@pytest.fixture
def client(model: Model) -> Any:
    return client_of(model)


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


def test_decoding_shares_a_budget() -> None:
    from prunion.runtime.batching import Budget

    budget = Budget(10, patience=0.05)
    with budget.hold(8), pytest.raises(OverloadError) as caught, budget.hold(3):
        pass
    assert caught.value.reason == "memory"
    with budget.hold(1000):
        assert budget.left == 0
    assert budget.left == 10


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
    started = time.process_time()  # others may have the processors meanwhile
    many_lists = b'{"inputs": [' + b"[]," * 150_000 + b"[]]}"
    assert client.post(INFER, content=many_lists).status_code == 400
    numbers = b'{"inputs": [' + b"0," * 200_000 + b"0]}"
    assert client.post(INFER, content=numbers).status_code == 400
    long = b'{"id": "' + b"x" * (1 << 19) + b'"}'
    assert client.post(INFER, content=long).status_code == 413
    assert time.process_time() - started < 2


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

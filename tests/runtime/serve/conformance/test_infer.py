"""Inference by NVIDIA's client, unchanged: tensors, images and labels, packed and streamed."""

from __future__ import annotations

import gzip
import io
import json
import queue
import zlib
from http.client import HTTPConnection
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.model import Model
from tests.runtime.serve.running import Running
from tests.support.waiting import LONG

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
from tests.runtime.serve.conformance.asking import grpc, http, inputs


def png(seed: int = 0, size: tuple[int, int] = (30, 40)) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_infer(client: Any, toy: ModuleType, batch: np.ndarray) -> None:
    rows = [0, 2, 1, 1, 0, 2]
    expected = toy.reference(toy.make_tables(), batch, np.array(rows))
    for domains in (rows, [list(toy.CLASSES)[row] for row in rows]):
        answer = client.infer("toy", inputs(client, batch, domains), request_id="7")
        got = answer.as_numpy("logits")
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)
        response = answer.get_response()
        found = (
            response
            if client.kind == "http"
            else {k: getattr(response, k) for k in ("id", "model_name", "model_version")}
        )
        assert (found["id"], found["model_name"], found["model_version"]) == ("7", "toy", "1")


def test_infer_of_one_domain(client: Any, model: Model, batch: np.ndarray) -> None:
    answer = client.infer("flowers", inputs(client, batch, None), model_version="1")
    got = answer.as_numpy("logits")
    assert got.shape == (6, 3)
    np.testing.assert_allclose(got, model.logits(batch, "flowers")[:, :3], rtol=1e-4, atol=1e-5)


def test_images_that_were_not_normalised_are_named(client: Any, batch: np.ndarray) -> None:
    """Only the server's log had a word of it, once."""
    for strange in ([], [1, 4]):
        image = np.clip(batch, -2, 2)
        image[strange, 0, 0, 0] = 255
        answer = client.infer("toy", inputs(client, image, [0] * 6)).get_response()
        if client.kind == "http":
            found = answer.get("parameters", {}).get("warning", "")
        else:
            found = answer.parameters["warning"].string_param
        assert found.startswith("image 1, 4: numbers beyond" if strange else "")
        assert bool(found) == bool(strange)


def test_half_and_columns(client: Any, model: Model, batch: np.ndarray) -> None:
    half = batch.astype(np.float16)
    column = np.array([[0]] * 6, np.int64)
    tensors = inputs(client, half, [0])
    tensors[1] = client.module.InferInput("domain", [6, 1], "INT64")
    tensors[1].set_data_from_numpy(column)
    got = client.infer("toy", tensors).as_numpy("logits")
    expected = model.logits(half.astype(np.float32), [0] * 6)
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_image_files_are_decoded_as_training_did(client: Any, model: Model) -> None:
    files = [png(0), png(1, (50, 23)), png(2, (12, 10))]
    images = np.array(files, dtype=object)
    got = client.infer("toy", inputs(client, images, [1, 1, 1])).as_numpy("logits")
    expected = [[c.probability for c in x.top] for x in model.predict(files, "signs", 5)]
    shares = np.exp(got - got.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    np.testing.assert_allclose(-np.sort(-shares, 1), expected, rtol=1e-4)


def test_raw_pixels_of_any_size(client: Any, model: Model) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (2, 21, 34, 3), np.uint8)
    got = client.infer("signs", inputs(client, pixels, None)).as_numpy("logits")
    best = [x.index for x in model.predict(pixels, "signs", 1)]
    assert got.argmax(1).tolist() == best


def test_classification(client: Any, model: Model, batch: np.ndarray) -> None:
    output = client.module.InferRequestedOutput("logits", class_count=4)
    answer = client.infer("toy", inputs(client, batch[:2], [1, 2]), outputs=[output])
    first, second = answer.as_numpy("logits").tolist()
    logits = model.logits(batch[:2], [1, 2])
    value, index, label = first[0].decode().split(":")
    assert float(value) == pytest.approx(logits[0].max(), rel=1e-4)
    assert (int(index), label) == (logits[0].argmax(), model.classes("signs")[int(index)])
    assert len(first) == 4
    assert [bool(x) for x in second] == [True, True, False, False], "digits has two classes"


def test_asynchronous_requests(client: Any, model: Model, batch: np.ndarray) -> None:
    expected = model.logits(batch[:1], [1])
    found: queue.Queue[Any] = queue.Queue()
    count = 20
    if client.kind == "http":
        pending = [client.async_infer("toy", inputs(client, batch[:1], [1])) for _ in range(count)]
        answers = [x.get_result() for x in pending]
    else:
        for _ in range(count):
            client.async_infer(
                "toy", inputs(client, batch[:1], [1]), lambda result, error: found.put(result)
            )
        answers = [found.get(timeout=LONG) for _ in range(count)]
    for answer in answers:
        np.testing.assert_allclose(answer.as_numpy("logits"), expected, rtol=1e-4, atol=1e-5)


def test_json_and_compression_over_http(server: Running, model: Model, batch: np.ndarray) -> None:
    with http.InferenceServerClient(f"127.0.0.1:{server.http}") as client:
        client.kind, client.module = "http", http
        expected = model.logits(batch, [1] * 6)
        for packing in (None, "gzip", "deflate"):
            for binary in (True, False):
                answer = client.infer(
                    "toy",
                    inputs(client, batch, [1] * 6, binary),
                    outputs=[http.InferRequestedOutput("logits", binary_data=binary)],
                    request_compression_algorithm=packing,
                    response_compression_algorithm="gzip",
                )
                got = answer.as_numpy("logits")
                np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_large_answers_are_packed_for_who_asks(server: Running) -> None:
    client = HTTPConnection("127.0.0.1", server.http, timeout=LONG)
    image = {"name": "image", "datatype": "FP32", "shape": [64, 3, 12, 10], "data": [0.0] * 23040}
    domain = {"name": "domain", "datatype": "INT64", "shape": [64], "data": [1] * 64}
    for binary in (False, True):
        outputs = [{"name": "logits", "parameters": {"binary_data": binary}}]
        text = json.dumps({"inputs": [image, domain], "outputs": outputs})
        answers = []
        for accepted in ("", "gzip", "deflate", "br, gzip;q=0.5", "gzip;q=0", "identity"):
            client.request("POST", "/v2/models/toy/infer", text, {"Accept-Encoding": accepted})
            answer = client.getresponse()
            encoding, body = answer.headers["content-encoding"], answer.read()
            assert encoding == {"br, gzip;q=0.5": "gzip"}.get(
                accepted, accepted if accepted in ("gzip", "deflate") else None
            )
            if encoding:
                body = gzip.decompress(body) if encoding == "gzip" else zlib.decompress(body)
            answers.append(body)
        assert len(set(answers)) == 1 and len(answers[0]) > 1000
    client.close()


def test_streams_over_grpc(server: Running, model: Model, batch: np.ndarray) -> None:
    found: queue.Queue[Any] = queue.Queue()
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc}") as client:
        client.kind, client.module = "grpc", grpc
        client.start_stream(lambda result, error: found.put((result, error)))
        client.async_stream_infer("toy", inputs(client, batch, [1] * 6))
        client.async_stream_infer("cars", inputs(client, batch, [1] * 6))
        client.async_stream_infer("toy", inputs(client, batch, [0] * 6))
        answers = [found.get(timeout=LONG) for _ in range(3)]
        client.stop_stream()
    assert [error is None for _, error in answers] == [True, False, True]
    for (answer, _), row in zip((answers[0], answers[2]), (1, 0), strict=True):
        expected = model.logits(batch, [row] * 6)
        np.testing.assert_allclose(answer.as_numpy("logits"), expected, rtol=1e-4, atol=1e-5)

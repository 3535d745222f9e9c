"""NVIDIA's client, unchanged, against a real server on both transports."""

from __future__ import annotations

import gzip
import io
import json
import queue
import zlib
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.model import Model, load
from tests.runtime.serve.running import Running, running
from tests.waiting import LONG

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
http = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http,grpc]")
grpc = pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[http,grpc]")
from tritonclient.utils import InferenceServerException  # noqa: E402


@pytest.fixture(scope="module")
def server(bundle_path: Path) -> Iterator[Running]:
    with running(bundle_path, "--control") as server:
        yield server


@pytest.fixture(scope="module")
def model(bundle_path: Path) -> Iterator[Model]:
    with load(bundle_path, threads=1) as model:
        yield model


@pytest.fixture(params=["http", "grpc"])
def client(request: Any, server: Running) -> Iterator[Any]:
    module = {"http": http, "grpc": grpc}[request.param]
    port = server.http if request.param == "http" else server.grpc
    client = module.InferenceServerClient(f"127.0.0.1:{port}")
    client.kind, client.module = request.param, module
    yield client
    client.close()


def as_dict(client: Any, call: str, *arguments: Any) -> Any:
    """A call's answer as JSON on either transport; gRPC writes 64-bit numbers as text."""
    options = {"as_json": True} if client.kind == "grpc" else {}
    return getattr(client, call)(*arguments, **options)


def inputs(client: Any, images: np.ndarray, domains: Any, binary: bool = True) -> list[Any]:
    kind = {"float32": "FP32", "float16": "FP16", "uint8": "UINT8", "object": "BYTES"}
    image = client.module.InferInput("image", list(images.shape), kind[images.dtype.name])
    options = {"binary_data": binary} if client.kind == "http" else {}
    image.set_data_from_numpy(images, **options)
    if domains is None:
        return [image]
    array = np.array(domains, dtype=object if isinstance(domains[0], str) else np.int64)
    domain = client.module.InferInput(
        "domain", list(array.shape), "BYTES" if array.dtype == object else "INT64"
    )
    domain.set_data_from_numpy(array, **options)
    return [image, domain]


def png(seed: int = 0, size: tuple[int, int] = (30, 40)) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_health_and_readiness(client: Any) -> None:
    assert client.is_server_live() and client.is_server_ready()
    for name in ("toy", "signs"):
        assert client.is_model_ready(name)
        assert client.is_model_ready(name, "1")
    assert not client.is_model_ready("cars")


def test_metadata(client: Any) -> None:
    server = as_dict(client, "get_server_metadata")
    assert server["name"] == "prunion"
    assert {"binary_tensor_data", "classification", "statistics"} <= set(server["extensions"])
    for version in ("", "1"):
        meta = as_dict(client, "get_model_metadata", "toy", version)
        assert [x["name"] for x in meta["inputs"]] == ["image", "domain"]
        assert [int(n) for n in meta["inputs"][0]["shape"]] == [-1, 3, 12, 10]
        assert [int(n) for n in meta["outputs"][0]["shape"]] == [-1, 5]
    meta = as_dict(client, "get_model_metadata", "flowers")
    assert [x["name"] for x in meta["inputs"]] == ["image"]
    assert [int(n) for n in meta["outputs"][0]["shape"]] == [-1, 3]


def test_config(client: Any) -> None:
    config = as_dict(client, "get_model_config", "toy")
    config = config.get("config", config)
    assert (config["name"], int(config["max_batch_size"])) == ("toy", 256)
    assert [int(n) for n in config["input"][0]["dims"]] == [3, 12, 10]
    assert config["input"][1]["data_type"] == "TYPE_INT64"


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


def test_errors_have_the_right_codes(client: Any, batch: np.ndarray) -> None:
    good = inputs(client, batch, [0] * 6)
    output = client.module.InferRequestedOutput
    not_found, invalid = (
        ("404", "400")
        if client.kind == "http"
        else ("StatusCode.NOT_FOUND", "StatusCode.INVALID_ARGUMENT")
    )
    cases = [
        (not_found, "cars", lambda: client.infer("cars", good)),
        (not_found, "version", lambda: client.infer("toy", good, model_version="2")),
        (not_found, "cars", lambda: client.infer("toy", inputs(client, batch, ["cars"] * 6))),
        (not_found, "index 3", lambda: client.infer("toy", inputs(client, batch, [3] * 6))),
        (not_found, "index -1", lambda: client.infer("toy", inputs(client, batch, [-1] * 6))),
        (not_found, "cars", lambda: client.get_model_metadata("cars")),
        (not_found, "cars", lambda: client.load_model("cars")),
        (invalid, "2 domains", lambda: client.infer("toy", inputs(client, batch, [0, 1]))),
        (invalid, "inputs", lambda: client.infer("toy", good[:1])),
        (invalid, "3, 12, 10", lambda: client.infer("toy", inputs(client, batch[:, :2], [0] * 6))),
        (invalid, "output", lambda: client.infer("toy", good, outputs=[output("x")])),
        (
            invalid,
            "image",
            lambda: client.infer(
                "signs", inputs(client, np.array([b"no image"], dtype=object), None)
            ),
        ),
        (
            invalid,
            "NaN",
            lambda: client.infer("toy", inputs(client, np.full_like(batch, np.nan), [0] * 6)),
        ),
        (
            invalid,
            "finite",
            lambda: client.infer("toy", inputs(client, np.full_like(batch, 1e38), [0] * 6)),
        ),
        (invalid, "stop the server", lambda: client.unload_model("toy")),
    ]
    for code, text, call in cases:
        with pytest.raises(InferenceServerException) as caught:
            call()
        assert caught.value.status() == code, (text, caught.value)
        assert text in caught.value.message(), caught.value.message()


def test_index_load_and_unload(client: Any, batch: np.ndarray) -> None:
    def states() -> dict[str, str]:
        index = as_dict(client, "get_model_repository_index")
        rows = index.get("models", []) if client.kind == "grpc" else index
        return {x["name"]: x["state"] for x in rows}

    assert set(states().values()) == {"READY"} and set(states()) >= {"toy", "signs"}
    client.unload_model("digits")
    try:
        assert states()["digits"] == "UNAVAILABLE"
        assert not client.is_model_ready("digits")
        with pytest.raises(InferenceServerException):
            client.infer("toy", inputs(client, batch[:1], ["digits"]))
    finally:
        client.load_model("digits")
    assert client.is_model_ready("digits")
    client.infer("toy", inputs(client, batch[:1], ["digits"]))
    client.load_model("toy")
    assert client.is_model_ready("toy")


def test_statistics(client: Any, batch: np.ndarray) -> None:
    def rows(name: str) -> int:
        (found,) = as_dict(client, "get_inference_statistics", name)["model_stats"]
        assert found["inference_stats"]["success"]
        return int(found["inference_count"])

    client.infer("toy", inputs(client, batch, [1] * 6))
    before = rows("toy"), rows("signs")
    client.infer("toy", inputs(client, batch, [1, 1, 1, 1, 0, 0]))
    assert (rows("toy"), rows("signs")) == (before[0] + 6, before[1] + 4)


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


def test_parameters(client: Any, batch: np.ndarray) -> None:
    good = inputs(client, batch, [0] * 6)
    client.infer("toy", good, priority=1, timeout=10_000_000)
    with pytest.raises(InferenceServerException, match="priority"):
        client.infer("toy", good, priority=9)
    with pytest.raises(InferenceServerException, match="sequence_id"):
        client.infer("toy", good, sequence_id=4, sequence_start=True)


def test_the_schema_is_the_public_one() -> None:
    """Numbers, types and repetition of every field, against the definition the client ships."""
    from tritonclient.grpc import model_config_pb2, service_pb2

    from prunion.runtime.protocol import schema

    def compare(own: Any, theirs: Any) -> None:
        known = {field.name: field for field in theirs.fields}
        for field in own.fields:
            other = known[field.name]
            assert (field.number, field.type) == (other.number, other.type), field.full_name
            assert field.is_repeated == other.is_repeated, field.full_name
        nested = {x.name: x for x in theirs.nested_types}
        for inner in own.nested_types:
            compare(inner, nested[inner.name])

    for name, message in schema().messages.items():
        theirs = service_pb2.DESCRIPTOR.message_types_by_name.get(name)
        compare(
            message.DESCRIPTOR, theirs or model_config_pb2.DESCRIPTOR.message_types_by_name[name]
        )

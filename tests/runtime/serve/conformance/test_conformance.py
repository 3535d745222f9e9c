"""NVIDIA's client, unchanged, against a real server on both transports: all but the answers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
pytest.importorskip("tritonclient.grpc", reason="needs tritonclient[http,grpc]")
from tritonclient.utils import InferenceServerException

from tests.runtime.serve.conformance.asking import as_dict, inputs


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

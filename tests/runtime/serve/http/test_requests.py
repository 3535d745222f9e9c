"""What is wrong with a request is said, whatever it is."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from prunion.runtime.model import Model

pytest.importorskip("onnxruntime")
uvicorn = pytest.importorskip("uvicorn", reason="needs prunion[serve]")
testclient = pytest.importorskip("starlette.testclient", reason="needs prunion[serve] and httpx")
from tests.runtime.serve.http.asking import INFER, body, client_of  # noqa: E402


@pytest.fixture
def client(model: Model) -> Any:
    return client_of(model)


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
        {"parameters": {"priority": False}},
        {"parameters": {"priority": ""}},
        {"parameters": {"priority": []}},
        {"parameters": {"priority": 0.0}},
        {"parameters": {"timeout": False}},
        {"parameters": {"timeout": 1.5}},
        {"parameters": {"sequence_id": 7}},
        {"parameters": {"sequence_id": False}},
        {"parameters": {"binary_data_output": "yes"}},
        {"output": [{"name": "logits"}]},
        {"outputs": [{"name": "logits", "parameter": {"classification": 2}}]},
        {"inputs": [{**body()["inputs"][0], "paramaters": {}}, body()["inputs"][1]]},
    ],
)
def test_what_is_not_understood_is_refused(client: Any, change: dict[str, Any]) -> None:
    text = json.dumps({**body(), **change}).encode()
    answer = client.post(INFER, content=text)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]


def test_what_clients_say_beside_the_protocol_is_taken(client: Any) -> None:
    """KServe's say the model's name again; parameters of any name are the protocol's to allow."""
    more = {"model_name": "toy", "model_version": "1", "parameters": {"tiemout": 1}}
    assert client.post(INFER, json={**body(), **more}).status_code == 200
    assert client.post(INFER + "?user=me", json=body()).status_code == 200


def test_a_misspelt_part_is_named(client: Any) -> None:
    answer = client.post(INFER, json={**body(), "output": []})
    told = answer.json()["error"]
    assert "the request has 'output', which is none of `id`" in told
    assert told.endswith(": did you mean `outputs`?")
    answer = client.post(INFER, json={**body(), "stream": True})
    assert answer.json()["error"].endswith(": leave it out")
    kind = {"content-type": "image/png"}
    answer = client.post("/v1/domains/signs:classify?topp=1", content=b"x", headers=kind)
    assert answer.status_code == 400
    assert "the query has 'topp', which is none of `top`" in answer.json()["error"]
    for wrong in ({"raedy": True}, {"ready": "yes"}):
        assert client.post("/v2/repository/index", json=wrong).status_code == 400


def test_what_is_cut_in_a_message_is_seen_to_be(client: Any) -> None:
    value = body()
    value["inputs"][1]["data"] = [2**300]
    said = client.post(INFER, json=value).json()["error"]
    assert f"domain index {str(2**300)[:50]}" in said and "... is outside 0..2" in said


@pytest.mark.parametrize("priority", [None, 0, 1, 2, 3])
def test_priorities_that_mean_something(client: Any, priority: int | None) -> None:
    """0 is what Triton's clients call the usual one."""
    value = {**body(), "parameters": {"priority": priority, "sequence_id": 0}}
    assert client.post(INFER, json=value).status_code == 200


def test_a_key_that_is_given_twice_is_refused(client: Any) -> None:
    text = json.dumps(body()).replace('"datatype"', '"name": "domain", "datatype"', 1)
    answer = client.post(INFER, content=text.encode())
    assert answer.status_code == 400
    assert answer.json()["error"] == "the body is no JSON (the key 'name' is given twice)"


@pytest.mark.parametrize(
    "name", ["Inference-Header-Content-Length", "Content-Type", "Content-Encoding", "X-Api-Key"]
)
def test_a_header_that_is_given_twice_is_refused(client: Any, name: str) -> None:
    for path in (INFER, "/v1/domains/signs:classify"):
        for values in (("1", "2"), ("1", "1")):
            answer = client.post(path, content=b"{}", headers=[(name, x) for x in values])
            assert answer.status_code == 400
            assert answer.json()["error"] == f"{name} is given twice: send it once"


def test_a_tensor_that_is_sent_twice_is_refused(client: Any) -> None:
    value = body()
    value["inputs"][0]["parameters"] = {"binary_data_size": 1440}
    head = json.dumps(value).encode()
    headers = {"inference-header-content-length": str(len(head))}
    answer = client.post(INFER, content=head + bytes(1440), headers=headers)
    assert answer.status_code == 400
    assert answer.json()["error"] == "`image` has `data` beside its binary_data_size: send one"


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


def test_numbers_that_no_network_can_answer(client: Any) -> None:
    value = body()
    value["inputs"][0]["data"] = [1e38] * 360
    answer = client.post(INFER, json=value)
    assert answer.status_code == 400 and "finite" in answer.json()["error"]
    assert np.isfinite(client.post(INFER, json=body()).json()["outputs"][0]["data"]).all()

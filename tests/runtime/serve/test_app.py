"""The HTTP server: protocol, plain images, refusals."""

from __future__ import annotations

import io
import json
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.model import load

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
testclient = pytest.importorskip("starlette.testclient", reason="needs prunion[serve] and httpx")

INFER = "/v2/models/toy/infer"


@pytest.fixture(scope="module")
def client(bundle_path: Path) -> Any:
    from prunion.runtime.serve import create_app

    app = create_app(load(bundle_path, backend="cpu", threads=1), max_body_bytes=1 << 20)
    return testclient.TestClient(app, raise_server_exceptions=False)


def tensor(name: str, datatype: str, shape: list[int], data: Any) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def request(image: np.ndarray, domain: list[Any], datatype: str = "INT64") -> dict[str, Any]:
    images = tensor("image", "FP32", list(image.shape), image.ravel().tolist())
    return {"id": "7", "inputs": [images, tensor("domain", datatype, [len(domain)], domain)]}


def png() -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def test_metadata(client: Any) -> None:
    for path in ("/v2/health/live", "/v2/health/ready", "/v2/models/toy/ready"):
        assert client.get(path).status_code == 200
    assert client.get("/v2").json()["name"] == "prunion"
    meta = client.get("/v2/models/toy").json()
    assert [x["name"] for x in meta["inputs"]] == ["image", "domain"]
    assert meta["inputs"][0]["shape"] == [-1, 3, 12, 10]
    assert meta["outputs"][0]["shape"] == [-1, 5]


def test_infer_equals_numpy(client: Any, toy: ModuleType, batch: np.ndarray) -> None:
    rows = [0, 2, 1, 1, 0, 2]
    answer = client.post(INFER, json=request(batch, rows)).json()
    assert (answer["id"], answer["model_name"]) == ("7", "toy")
    (output,) = answer["outputs"]
    logits = np.array(output["data"], np.float32).reshape(output["shape"])
    expected = toy.reference(toy.make_tables(), batch, np.array(rows))
    expected = np.maximum(expected, np.finfo(np.float32).min)  # JSON has no -inf
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_infer_takes_domain_names(client: Any, batch: np.ndarray) -> None:
    by_name = client.post(INFER, json=request(batch[:2], ["signs", "digits"], "BYTES")).json()
    by_row = client.post(INFER, json=request(batch[:2], [1, 2])).json()
    assert by_name == by_row


def test_plain_image(client: Any, bundle_path: Path) -> None:
    answer = client.post(
        "/predict/signs?top=2", content=png(), headers={"content-type": "image/png"}
    ).json()
    (expected,) = load(bundle_path).predict(png(), "signs")
    (row,) = answer["predictions"]
    assert row["class"] == expected.class_name
    assert row["probability"] == pytest.approx(expected.probability, rel=1e-4)
    assert len(row["top"]) == 2


def test_multipart_files(client: Any) -> None:
    files = [("a", ("a.png", png(), "image/png")), ("b", ("b.png", png(), "image/png"))]
    response = client.post("/predict/signs", files=files)
    if find_spec("python_multipart") is None:
        assert response.status_code == 501
        assert "pip install" in response.json()["error"]
        return
    assert len(response.json()["predictions"]) == 2
    empty = client.post(
        "/predict/signs",
        content=b"--x--\r\n",
        headers={"content-type": "multipart/form-data; boundary=x"},
    )
    assert empty.status_code == 400


ONE = np.zeros((1, 3, 12, 10), np.float32)


def changed(index: int, **change: Any) -> dict[str, Any]:
    body = request(ONE, [0])
    body["inputs"][index].update(change)
    return body


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (request(ONE, [3]), 404),
        (request(ONE, [-1]), 404),
        (request(ONE, ["cars"], "BYTES"), 404),
        (request(ONE, [0, 0]), 400),
        (request(ONE[:, :2], [0]), 400),
        ([], 400),
        ({}, 400),
        ({"inputs": []}, 400),
        ({"inputs": [1, 2]}, 400),
        ({"inputs": [{"name": []}, {"name": "image"}]}, 400),
        (changed(0, datatype="FP64"), 400),
        (changed(0, shape=[1, 3, 12, -10]), 400),
        (changed(0, shape=[10**9, 3, 12, 10]), 400),
        (changed(0, shape=[1, 3, 12, True]), 400),
        (changed(0, shape=None), 400),
        (changed(0, data=[1.0]), 400),
        (changed(0, data=["a"] * 360), 400),
        (changed(0, data=["1.0"] * 360), 400),
        (changed(0, data=[10**30] * 360), 400),
        (changed(0, data=[1e300] * 360), 400),
        (changed(0, data=[[1], [1, 2]]), 400),
        (changed(0, data=None), 400),
        (changed(1, data=[0.0]), 400),
        (changed(1, data=[True]), 400),
        (changed(1, data=[10**30]), 404),
        (changed(1, name="image"), 400),
        (changed(1, name="other"), 400),
    ],
)
def test_bad_requests_get_an_error(client: Any, body: Any, status: int) -> None:
    response = client.post(INFER, json=body)
    assert response.status_code == status, response.text
    assert response.json()["error"]


def test_other_refusals(client: Any) -> None:
    image = {"content-type": "image/png"}
    cases = [
        (client.post(INFER, content=b"{"), 400),
        (client.post(INFER, content=b"[" * 100_000), 400),
        (client.post(INFER, content=b'{"inputs": [NaN]}'), 400),
        (client.post(INFER, content=b"x" * (2 << 20)), 413),
        (client.post("/v2/models/other/infer", json={}), 404),
        (client.get("/v2/models/other/ready"), 404),
        (client.get("/nothing"), 404),
        (client.get(INFER), 405),
        (client.post("/predict/cars", content=png(), headers=image), 404),
        (client.post("/predict/signs", content=b"x", headers=image), 400),
        (client.post("/predict/signs", content=b"", headers=image), 400),
        (client.post("/predict/signs", content=b"x", headers={"content-type": "text/x"}), 415),
        (client.post("/predict/signs?top=-1", content=png(), headers=image), 400),
        (client.post("/predict/signs", content=b"x" * (2 << 20), headers=image), 413),
    ]
    for response, status in cases:
        assert response.status_code == status, (response.request.url, response.text)
        assert response.json()["error"]


@pytest.mark.parametrize("path", [INFER, "/predict/signs"])
def test_a_body_may_be_as_large_as_the_limit_and_no_larger(client: Any, path: str) -> None:
    image, limit = {"content-type": "image/png"}, 1 << 20  # as the fixture sets it
    at = client.post(path, content=b"x" * limit, headers=image)
    assert at.status_code == 400, "read whole, and then found to be nonsense"
    above = client.post(path, content=b"x" * (limit + 1), headers=image)
    assert above.status_code == 413
    assert above.json()["error"] == f"the body is larger than {limit} bytes: send less"
    chunks = client.post(path, content=iter([b"x" * limit, b"x"]), headers=image)
    assert chunks.status_code == 413, "a body without a length is counted as it comes"


@pytest.mark.parametrize(("rows", "status"), [(0, 400), (1, 200), (256, 200), (257, 400)])
def test_a_request_may_hold_as_many_rows_as_the_limit(client: Any, rows: int, status: int) -> None:
    answer = client.post(INFER, json=request(np.repeat(ONE, rows, axis=0), [1] * rows))
    assert answer.status_code == status, answer.text
    if status == 200:
        assert answer.json()["outputs"][0]["shape"] == [rows, 5]
    else:
        assert answer.json()["error"] == (
            f"the batch has {rows} images: send 1 to 256 in a request"
        )


@pytest.mark.skipif(find_spec("python_multipart") is None, reason="needs python-multipart")
@pytest.mark.parametrize(("count", "status"), [(256, 200), (257, 400)])
def test_a_form_may_hold_as_many_files_as_the_limit(client: Any, count: int, status: int) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (10, 12)).save(stream, "PNG")
    files = [("x", ("x.png", stream.getvalue(), "image/png"))] * count
    answer = client.post("/predict/signs", files=files)
    assert answer.status_code == status, answer.text
    if status == 200:
        assert len(answer.json()["predictions"]) == count
    else:
        assert "256" in answer.json()["error"]


@pytest.mark.parametrize(
    ("top", "status"), [("0", 400), ("1", 200), ("999999", 200), ("1000000", 400), ("٣", 400)]
)
def test_the_number_of_classes_asked_for_has_limits(client: Any, top: str, status: int) -> None:
    answer = client.post(
        f"/predict/signs?top={top}", content=png(), headers={"content-type": "image/png"}
    )
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize("change", [{"shape": [10**400, 3, 12, 10]}, {"data": [10**400] * 360}])
def test_numbers_no_float_can_hold_are_refused(client: Any, change: dict[str, Any]) -> None:
    response = client.post(INFER, json=changed(0, **change))
    assert response.status_code == 400
    assert len(response.json()["error"].splitlines()) == 1
    assert len(response.json()["error"]) < 300


RAW = {"content-type": "application/octet-stream"}


@pytest.mark.parametrize("headers", [RAW, {"inference-header-content-length": "0"}])
def test_a_tensor_alone_is_a_request_to_a_domain(
    client: Any, batch: np.ndarray, headers: dict[str, str]
) -> None:
    """Triton's raw binary requests: their answers are raw too."""
    answer = client.post("/v2/models/signs/infer", content=batch.tobytes(), headers=headers)
    assert answer.status_code == 200, answer.text
    length = int(answer.headers["inference-header-content-length"])
    told = json.loads(answer.content[:length])
    expected = client.post(INFER, json=request(batch, [1] * len(batch))).json()["outputs"][0]
    assert told["outputs"][0]["shape"] == expected["shape"]
    logits = np.frombuffer(answer.content[length:], "<f4")
    np.testing.assert_allclose(logits, expected["data"], rtol=1e-5)


def test_bytes_are_not_taken_for_what_they_are_not(client: Any, batch: np.ndarray) -> None:
    url, data = "/v2/models/signs/infer", bytearray(batch[:1].tobytes())
    data[0] = ord("{")  # as a tensor may begin
    assert client.post(url, content=bytes(data), headers=RAW).status_code == 200
    image = request(batch[:1], [0])["inputs"][0]
    for coding in ("utf-8", "utf-16", "utf-32"):  # as some clients call their JSON
        text = json.dumps({"inputs": [image]}).encode(coding)
        assert client.post(url, content=text, headers=RAW).json()["outputs"]
    text = json.dumps({"inputs": [image]}).encode()
    spaces = b" \r\n" * 100
    wide = "\n".join((" " * 300, text.decode(), " " * 300))
    for content in (
        b"\xef\xbb\xbf" + text,
        spaces + text + spaces,
        b"{" + spaces + text[1:-1] + spaces + b"}",
        wide.encode("utf-16"),
        wide.encode("utf-32-be"),
        text + b" " * (-len(text) % 1440),  # as long as whole images
    ):
        answer = client.post(url, content=content, headers=RAW)
        assert answer.status_code == 200 and answer.json()["outputs"], answer.text
    answer = client.post(url, content=text[:-9], headers=RAW)
    assert answer.status_code == 400 and "no JSON" in answer.json()["error"]
    for first in (b'{"', b"{}"):  # a tensor that begins and ends as JSON does is no text
        content = first + bytes(data[2:-1]) + b"}"
        answer = client.post(url, content=content, headers=RAW)
        assert answer.headers["content-type"] == "application/octet-stream"
    for content in (b"", bytes(data[:-1]), b"nonsense"):
        answer = client.post(url, content=content, headers=RAW)
        assert answer.status_code == 400 and "takes 1440" in answer.json()["error"]
    answer = client.post(INFER, content=bytes(data), headers=RAW)
    assert answer.status_code == 400 and "`domain`" in answer.json()["error"]
    assert client.post(url, content=bytes(data)).status_code == 400, (
        "it does not say that it is raw"
    )
    assert client.post("/v2/models/signs/infer", content=b"{}", headers=RAW).status_code == 400

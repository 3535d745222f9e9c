"""JSON's `data` is flat, or nested exactly as its shape: the same numbers elsewhere are others."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.errors import InputError
from prunion.runtime.model import load
from prunion.runtime.protocol.tensors import (
    json_tensor,
    pack_bytes_tensor,
    raw_tensor,
    with_content,
)

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
from tests.runtime.serve.http.asking import INFER, client_of

VALUES: dict[str, list[Any]] = {
    "FP32": [value / 2 for value in range(24)],
    "FP16": [value / 2 for value in range(24)],
    "UINT8": list(range(24)),
    "INT64": list(range(24)),
    "BYTES": [str(value) for value in range(24)],
}
KINDS = list(VALUES)


@pytest.fixture(scope="module")
def client(bundle_path: Path) -> Iterator[Any]:
    with load(bundle_path, backend="cpu", threads=1) as model:
        yield client_of(model)


def nested(values: list[Any], *sizes: int) -> list[Any]:
    """The values in lists of these lengths."""
    if len(sizes) < 2:
        return values
    step = len(values) // sizes[0]
    rows = range(0, len(values), step)
    return [nested(values[place : place + step], *sizes[1:]) for place in rows]


def read(kind: str, shape: list[int], data: Any) -> list[Any]:
    tensor = json_tensor({"name": "x", "datatype": kind, "shape": shape, "data": data})
    values = tensor.data
    return values.ravel().tolist() if isinstance(values, np.ndarray) else list(values)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [[24], [24, 1], [1, 24], [2, 3, 4], [1, 2, 1, 12]])
def test_flat_and_nested_are_the_same_tensor(kind: str, shape: list[int]) -> None:
    flat = read(kind, shape, VALUES[kind])
    assert flat == [x.encode() if isinstance(x, str) else x for x in VALUES[kind]]
    assert read(kind, shape, nested(VALUES[kind], *shape)) == flat


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("shape", "sizes"),
    [
        ([2, 3, 4], (2, 4, 3)),
        ([2, 3, 4], (3, 4, 2)),
        ([2, 3, 4], (6, 4)),
        ([2, 3, 4], (1, 2, 3, 4)),
        ([2, 3, 4], (2, 3, 4, 1)),
        ([2, 12], (24, 1)),
        ([24], (1, 24)),
        ([24, 1], (1, 24)),
    ],
)
def test_other_nestings_are_refused(kind: str, shape: list[int], sizes: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"`x\.data` is nested in another way than its shape"):
        read(kind, shape, nested(VALUES[kind], *sizes))


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_several_lengths_are_refused(kind: str) -> None:
    first, second, *_ = VALUES[kind]
    for data in ([[first], [first, second]], [first, [second]], [[first], second, []], [[], []]):
        with pytest.raises(InputError, match="is nested in another way"):
            read(kind, [2, 1], data)
    assert read(kind, [2, 0], [[], []]) == read(kind, [0, 2], []) == []


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("odd", [True, False, None, {}, ""])
def test_values_of_another_type_are_refused(kind: str, odd: Any) -> None:
    if kind == "BYTES" and odd == "":
        odd = 0
    for data in ([odd, *VALUES[kind][1:]], nested([*VALUES[kind][:-1], odd], 2, 12)):
        with pytest.raises(InputError, match=r"must hold .* only, as its datatype"):
            read(kind, [2, 12], data)


@pytest.mark.parametrize("huge", [10**400, -(10**400), 2**64, 10**30])
@pytest.mark.parametrize("beside", [0, 0.5])
def test_numbers_beyond_every_type_are_refused(huge: int, beside: float) -> None:
    with pytest.raises(InputError, match=r"whole numbers in 0\.\.255"):
        read("UINT8", [2], [huge, beside])
    if abs(huge) > 1e40:
        with pytest.raises(InputError, match="beyond float32"):
            read("FP32", [2], [huge, beside])


def test_text_that_is_no_base64_is_refused() -> None:
    entry = {"name": "x", "datatype": "BYTES", "shape": [1], "data": ["é"]}
    with pytest.raises(InputError, match="is no base64"):
        json_tensor({**entry, "parameters": {"content_type": "base64"}})


@pytest.mark.parametrize("kind", ["Base64", "BASE64", "image", 5, True, []])
def test_a_content_type_that_is_not_known_is_refused(kind: object) -> None:
    """It was treated as absent, and base64 text as an image."""
    entry = {"name": "image", "datatype": "BYTES", "shape": [1], "data": ["aGVsbG8="]}
    with pytest.raises(InputError, match=r"`image`'s content_type is .*: send"):
        json_tensor({**entry, "parameters": {"content_type": kind}})


@pytest.mark.parametrize("kind", [None, "str", "np"])
def test_what_other_servers_clients_say_of_plain_text_is_taken(kind: object) -> None:
    entry = {"name": "domain", "datatype": "BYTES", "shape": [1], "data": ["signs"]}
    assert json_tensor({**entry, "parameters": {"content_type": kind}}).data == [b"signs"]
    numbers = {"name": "image", "datatype": "FP32", "shape": [1], "data": [1]}
    assert json_tensor({**numbers, "parameters": {"content_type": "np"}}).data == [1]


@pytest.mark.parametrize("form", ["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "url"])
def test_an_image_as_base64_that_does_not_say_so_is_told_how(form: str) -> None:
    stream = io.BytesIO()
    Image.new("RGB", (8, 8)).save(stream, "PNG" if form == "url" else form)
    text = base64.b64encode(stream.getvalue()).decode()
    text = f"data:image/png;base64,{text}" if form == "url" else text
    entry = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [text]}
    with pytest.raises(InputError, match="say so, with the parameter content_type 'base64'"):
        json_tensor(entry)


def test_a_content_type_holds_for_raw_tensors_too() -> None:
    raw = raw_tensor("image", "BYTES", (1,), pack_bytes_tensor([b"aGVsbG8="]))
    assert with_content(raw, {"content_type": "base64"}).data == [b"hello"]
    assert with_content(raw, {}).data == [b"aGVsbG8="]


def asked(client: Any, image: np.ndarray, data: Any, domain: dict[str, Any]) -> Any:
    kind = "UINT8" if image.dtype == np.uint8 else "FP32"
    entry = {"name": "image", "datatype": kind, "shape": list(image.shape), "data": data}
    return client.post(INFER, json={"inputs": [entry, {"name": "domain", **domain}]})


def test_an_image_with_its_channels_elsewhere_gets_no_answer(client: Any) -> None:
    image = np.random.default_rng(0).standard_normal((1, 3, 12, 10)).astype(np.float32)
    pixels = np.random.default_rng(0).integers(0, 256, (1, 12, 10, 3)).astype(np.uint8)
    domain = {"datatype": "BYTES", "shape": [1], "data": ["signs"]}
    for array, other in ((image, (0, 2, 3, 1)), (pixels, (0, 2, 1, 3)), (pixels, (0, 3, 1, 2))):
        assert asked(client, array, array.tolist(), domain).status_code == 200
        answer = asked(client, array, array.transpose(other).tolist(), domain)
        assert answer.status_code == 400 and "nested in another way" in answer.json()["error"]


def test_domains_of_one_column_may_be_nested_as_their_shape(client: Any) -> None:
    image = np.zeros((2, 3, 12, 10), np.float32)
    for kind, flat in (("INT64", [1, 0]), ("BYTES", ["signs", "flowers"])):
        domain = {"datatype": kind, "shape": [2, 1], "data": [[x] for x in flat]}
        rows = asked(client, image, image.tolist(), domain)
        plain = asked(client, image, image.ravel().tolist(), {**domain, "data": flat})
        assert rows.status_code == plain.status_code == 200
        assert rows.json() == plain.json()
        wrong = asked(client, image, image.tolist(), {**domain, "shape": [2], "data": [flat]})
        assert wrong.status_code == 400

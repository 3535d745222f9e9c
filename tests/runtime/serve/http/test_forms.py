"""A form is answered image by image, as many as it holds, or refused."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prunion.runtime.model import load

pytest.importorskip("onnxruntime")
pytest.importorskip("uvicorn", reason="needs prunion[serve]")
pytest.importorskip("python_multipart", reason="needs prunion[serve]")
from tests.runtime.serve.http.asking import LIMITS, client_of

PATHS = ("/v1/domains/signs:classify", "/predict/signs")
NAMED = b'Content-Disposition: form-data; name="a"; filename="a.png"\r\n\r\n'
NAMELESS = b'Content-Disposition: form-data; name="b"\r\n'
TOP = b'Content-Disposition: form-data; name="top"\r\n\r\n'
END = b"\r\n--X--\r\n"


@pytest.fixture(scope="module")
def client(bundle_path: Path) -> Iterator[Any]:
    with load(bundle_path, backend="cpu", threads=1) as model:
        yield client_of(model)


def png(seed: int) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


FIRST, SECOND = png(1), png(2)


def form(*parts: bytes, end: bytes = END) -> bytes:
    return b"\r\n".join(b"--X\r\n" + part for part in parts) + end


def asked(client: Any, body: bytes, path: str = PATHS[0]) -> Any:
    headers = {"content-type": "multipart/form-data; boundary=X"}
    return client.post(path, content=body, headers=headers)


def alone(client: Any, image: bytes) -> Any:
    answer = client.post(PATHS[0], content=image, headers={"content-type": "image/png"})
    return answer.json()["predictions"][0]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "second",
    [
        NAMED,
        NAMELESS + b"Content-Type: image/png\r\n\r\n",
        NAMELESS + b"content-type: IMAGE/png; x=y\r\n\r\n",
        NAMELESS + b"Content-Type: application/octet-stream\r\n\r\n",
        b"Content-Type: text/plain\r\n" + NAMED,
    ],
)
def test_every_image_has_its_answer_in_its_place(client: Any, path: str, second: bytes) -> None:
    expected = [alone(client, FIRST), alone(client, SECOND)]
    for end in (END, b"\r\n--X--", b"\r\n--X-- \t\r\n\r\n\r\n"):
        answer = asked(client, form(NAMED + FIRST, second + SECOND, end=end), path)
        assert answer.status_code == 200, answer.text
        got = answer.json()["predictions"]
        assert [x["index"] for x in got] == [x["index"] for x in expected]
        for row, right in zip(got, expected, strict=True):
            assert row["probability"] == pytest.approx(right["probability"], rel=1e-4)


def test_a_file_without_a_name_as_clients_send_it(client: Any) -> None:
    files = {"a": (None, FIRST, "image/png"), "b": ("b.png", SECOND, "image/png")}
    assert len(client.post(PATHS[0], files=files).json()["predictions"]) == 2


TWO = form(NAMED + FIRST, NAMED + SECOND)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("body", "said"),
    [
        (form(NAMED + FIRST, NAMED + SECOND, end=b""), "without its last boundary"),
        (form(NAMED + FIRST, NAMED + SECOND[:50], end=b""), "without its last boundary"),
        (form(NAMED + FIRST, NAMED[:20], end=b""), "without its last boundary"),
        (form(NAMED + FIRST, end=b"\r\n--X\r\n"), "without its last boundary"),
        (form(NAMED + FIRST, end=b"\r\n--X"), "without its last boundary"),
        (form(NAMED + FIRST, end=b"\r\n--X-"), "without its last boundary"),
        (b"", "without its last boundary"),
        (form(NAMED + FIRST) + form(NAMED + SECOND), "behind its last one"),
        (TWO + b"x", "behind its last one"),
        (TWO + b"--X--\r\n", "behind its last one"),
        (b"before\r\n" + TWO, "cannot be read"),
        (b"\r\nbefore\r\n" + TWO, "before its first boundary"),
        (form(NAMED + FIRST, NAMELESS + b"\r\n" + SECOND), "field 'b' is no file"),
        (form(NAMED + FIRST, NAMELESS + b"Content-Type: text/x\r\n\r\n"), "field 'b' is no file"),
        (form(NAMED + FIRST, b"Content-Type: image/png\r\n\r\n" + SECOND), "has no name"),
        (form(NAMED + FIRST, b"\r\n" + SECOND), "has no name"),
        (form(NAMED + FIRST, NAMED), "image 1"),
        (form(b"Content-Type: image/png\r\nContent-Type: a/b\r\n" + NAMED + FIRST), "twice"),
        (form(), "holds no files"),
        (form(TOP + b"1"), "holds no files"),
        (form(*[NAMED + FIRST] * (LIMITS.rows + 1)), "at most 8"),
    ],
)
def test_a_form_that_lacks_an_answer_is_refused(
    client: Any, path: str, body: bytes, said: str
) -> None:
    answer = asked(client, body, path)
    assert answer.status_code == 400, answer.text
    assert said in answer.json()["error"]


def test_a_form_may_be_cut_nowhere(client: Any) -> None:
    """Wherever it breaks off but behind its last boundary."""
    last = TWO.rindex(b"--X--") + len(b"--X--")
    for size in range(0, len(TWO) + 1, 7):
        assert asked(client, TWO[:size]).status_code == (200 if size >= last else 400)
    for size in range(last - 40, len(TWO) + 1):
        assert asked(client, TWO[:size]).status_code == (200 if size >= last else 400), size


def test_top_may_stand_in_the_form_and_once(client: Any) -> None:
    image = NAMED + FIRST
    for body in (form(image, TOP + b"2"), form(TOP + b"2", image)):
        (row,) = asked(client, body).json()["predictions"]
        assert len(row["top"]) == 2
    for text in (b"0", b"x", b"", b"\xff", b"1" * 7):
        assert asked(client, form(image, TOP + text)).status_code == 400
    for body, query in (
        (form(image, TOP + b"1", TOP + b"2"), ""),
        (form(image, TOP + b"1"), "?top=1"),
        (form(image), "?top=1&top=2"),
    ):
        answer = asked(client, body, PATHS[0] + query)
        assert answer.status_code == 400 and "top" in answer.json()["error"]


@pytest.mark.parametrize("kind", ["", "; boundary", "; boundary=", '; boundary=""'])
def test_a_form_without_a_boundary_is_refused(client: Any, kind: str) -> None:
    headers = {"content-type": f"multipart/form-data{kind}"}
    answer = client.post(PATHS[0], content=TWO, headers=headers)
    assert answer.status_code == 400 and "boundary" in answer.json()["error"]

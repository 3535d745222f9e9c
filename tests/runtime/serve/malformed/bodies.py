"""Bodies that are wrong: JSON, JSON with raw tensors behind it, packed bodies, forms, images."""

from __future__ import annotations

import copy
import gzip
import io
import json
import struct
import zlib
from collections.abc import Callable, Sequence
from functools import cache
from random import Random
from typing import Any

from PIL import Image

Body = tuple[bytes, dict[str, str]]  # and the headers that go with it

STRANGE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 5, 255, 256, 1 << 31, 1 << 63, -(1 << 63), 1 << 64, 10**40,
    10**400, 0.5, -0.0, 1e38, 1e308, float("nan"), float("inf"), -float("inf"), "", "x", "\0",
    "\ud800", "é", "𝒳" * 40, "a" * 3000, "../../etc/passwd", "image", "domain", "logits", "signs",
    "FP32", "FP64", "FP16", "BF16", "BOOL", "INT64", "BYTES", "UINT8", "{}", [], {}, [[]], [{}],
    {"": ""}, [None], [[[[[[[[[[1]]]]]]]]]], {"a": {"a": {"a": 1}}}, [0] * 50, list(range(9)),
)  # fmt: skip
SHAPES: tuple[Any, ...] = (
    [], [0], [1], [-1], [1, -1, 12, 10], [1, 3, 12, 10], [2, 3, 12, 10], [1, 12, 10, 3], [1] * 9,
    [1 << 62, 4], [1 << 31, 12, (1 << 63) - 1, 0],
    [1 << 32, 1 << 32], [10**18, 3, 12, 10], [0, 3, 12, 10], [1, 0, 0, 3],
    [1, 65536, 65536, 3], [1.0, 3, 12, 10], ["1", 3, 12, 10], [True, 3, 12, 10], [None], "1,3",
    5, None, {}, [[1]], [300, 3, 12, 10], [1, 1, 1 << 20, 3], [1] * 2000, [1, 3, 12, 10, 1],
)  # fmt: skip
TYPES = ("FP32", "FP16", "UINT8", "INT64", "BYTES", "FP64", "BF16", "BOOL", "fp32", "", "INT8")
PARAMETERS: tuple[dict[str, Any], ...] = (
    {"priority": 0}, {"priority": -3}, {"priority": 4}, {"priority": "1"}, {"priority": 1.5},
    {"priority": 1 << 70}, {"timeout": -1}, {"timeout": 1}, {"timeout": "soon"}, {"timeout": 1e30},
    {"timeout": True}, {"sequence_id": 5}, {"sequence_id": "a"}, {"sequence_start": True},
    {"binary_data_output": 1}, {"binary_data_output": "yes"}, {"shared_memory_region": "x"},
    {"classification": 3}, {"binary_data_size": 10}, {"binary_data_size": -1}, {"a": {"b": [1]}},
    {"binary_data_size": 1 << 62}, {"content_type": "base64"}, {"content_type": 7}, {"": None},
)  # fmt: skip
PIXELS = 360  # of the toy bundle's images, [3, 12, 10]


def right_request() -> dict[str, Any]:
    """A request that the toy bundle answers."""
    image = {"name": "image", "datatype": "FP32", "shape": [1, 3, 12, 10], "data": [0.1] * PIXELS}
    domain = {"name": "domain", "datatype": "BYTES", "shape": [1], "data": ["signs"]}
    return {"id": "1", "inputs": [image, domain], "outputs": [{"name": "logits"}]}


def changed(random: Random, value: Any) -> Any:
    """A JSON value with one to four of its parts replaced, removed, doubled or moved."""
    value = json.loads(json.dumps(value))
    for _ in range(random.randint(1, 4)):
        value = _change(random, value)
    return value


def _change(random: Random, value: Any) -> Any:
    if not isinstance(value, (dict, list)) or not value or random.random() < 0.12:
        return _one_of(random, STRANGE)
    if isinstance(value, list) and len(value) > 20:
        return [*value[: random.randint(0, 20)], _one_of(random, STRANGE)]
    places: list[Any] = list(value) if isinstance(value, dict) else list(range(len(value)))
    place, kind = random.choice(places), random.random()
    if kind < 0.15:
        del value[place]
    elif kind < 0.25 and isinstance(value, list):
        value.append(copy.deepcopy(value[place]))
    elif kind < 0.25 and isinstance(value, dict):
        value[str(random.choice(STRANGE[:30]))[:50]] = value.pop(place)
    elif place == "shape":
        value[place] = _one_of(random, SHAPES)
    elif place == "datatype":
        value[place] = random.choice(TYPES)
    elif kind < 0.35 and isinstance(value, dict):
        value["parameters"] = _one_of(random, PARAMETERS)
    else:
        value[place] = _change(random, value[place])
    return value


def _one_of(random: Random, values: Sequence[Any]) -> Any:
    """One of `values`, of its own: a later change must reach neither the list nor itself again."""
    return copy.deepcopy(random.choice(values))


def json_body(random: Random) -> Body:
    """JSON that a parser reads, or nearly."""
    text = json.dumps(changed(random, right_request()), ensure_ascii=random.random() < 0.9)
    raw = text.encode("utf-8", "surrogatepass")
    return (damaged(random, raw) if random.random() < 0.3 else raw), {}


def text_body(random: Random) -> Body:
    """What is no request at all, in the ways that people and programs send it."""
    right = json.dumps(right_request())
    choices: list[Callable[[], bytes]] = [
        lambda: b"",
        lambda: b"\xef\xbb\xbf" + right.encode(),
        lambda: right.encode("utf-16"),
        lambda: right.encode("utf-32"),
        lambda: b"[" * random.choice((10, 900, 5000, 100_000)),
        lambda: b'{"a":' * 5000 + b"1" + b"}" * 5000,
        lambda: b'{"inputs": [' + b"[]," * 20_000 + b"[]]}",
        lambda: b'{"inputs": [' + b"0," * 60_000 + b"0]}",
        lambda: b'{"id": ' + b"9" * 5000 + b', "inputs": []}',
        lambda: b'{"inputs": [], "inputs": 5}',
        lambda: right.replace("0.1", random.choice(("NaN", "Infinity", "-Infinity", "1e999", "+1", "01", "0x1", "null", '"0"', "1" * 400))).encode(),  # noqa: E501
        lambda: right.replace('"', "'").encode(),
        lambda: (right + right).encode(),
        lambda: right.encode() + b"\0" * 50,
        lambda: random.randbytes(random.randint(1, 2000)),
        lambda: b"id=1&inputs=%5B%5D",
        lambda: b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b SYSTEM "file:///etc/passwd">]><a>&b;',
        lambda: json.dumps({"inputs": [right_request()["inputs"][0]] * 300}).encode()[:200_000],
    ]  # fmt: skip
    return random.choice(choices)(), {}


def binary_body(random: Random) -> Body:
    """JSON and raw tensors, where lengths, shapes and types do not fit together."""
    value = right_request()
    image, domain = value["inputs"]
    raw = [struct.pack(f"<{PIXELS}f", *[0.1] * PIXELS), b"\5\0\0\0signs"]
    kind = random.randrange(8)
    if kind == 0:
        raw[0] = damaged(random, raw[0])
    elif kind == 1:
        raw[1] = random.choice((b"\xff\xff\xff\xff", b"\5\0\0\0", b"\5\0\0\0sig", b"\0", b"", b"\2\0\0\0\xff\xfe", raw[1] * 3))  # fmt: skip # noqa: E501
    elif kind == 2:
        image["shape"] = _one_of(random, SHAPES)
    elif kind == 3:
        random.choice((image, domain))["datatype"] = random.choice(TYPES)
    elif kind == 4:
        domain.update(datatype="INT64")
        raw[1] = struct.pack("<q", random.choice((-1, 3, 1 << 40, -(1 << 63), (1 << 63) - 1)))
    elif kind == 5:
        image.update(datatype="BYTES", shape=[1])
        file = image_file(random)
        raw[0] = struct.pack("<I", len(file)) + file
    elif kind == 6:
        size = random.choice((0, 1, 3, PIXELS))
        image.update(datatype="UINT8", shape=[1, size, random.choice((0, 1, 40)), 3])
        raw[0] = bytes(3 * size * image["shape"][2])
    for entry, data in zip((image, domain), raw, strict=True):
        del entry["data"]
        size = len(data) + random.choice((0, 0, 0, 0, 1, -1, 4, 1 << 40))
        entry["parameters"] = {"binary_data_size": _one_of(random, (size, size, size, *STRANGE))}
    if random.random() < 0.2:
        value["parameters"] = {"binary_data_output": True}
    if random.random() < 0.3:
        value = changed(random, value)
    head = json.dumps(value).encode()
    length: Any = len(head)
    if random.random() < 0.3:
        length = random.choice(
            (0, 1, -1, length - 1, length + 1, 1 << 40, "", " 1", "1e2", "0x10", "1,2", "9" * 99)
        )  # fmt: skip
    tail = b"".join(raw) + random.choice((b"", b"", b"", b"x", bytes(1000)))
    return head + tail, {"Inference-Header-Content-Length": str(length)}


def packed_body(random: Random) -> Body:
    """Content-Encoding: bombs, cut streams, several members, names of encodings that nobody has."""
    text = json.dumps(right_request()).encode()
    name = random.choice(
        ("gzip", "deflate", "GZIP", "br", "zstd", "compress", "gzip, gzip", "identity", "", "x")
    )  # fmt: skip
    packed = gzip.compress(text) if random.random() < 0.5 else zlib.compress(text)
    kind = random.randrange(7)
    if kind == 0:
        packed = damaged(random, packed)
    elif kind == 1:
        packed = _bomb() if random.random() < 0.3 else b"\x1f\x8b"
    elif kind == 2:
        packed = packed[: random.randrange(len(packed))]
    elif kind == 3:
        packed *= random.randint(2, 40)
    elif kind == 4:
        packed = gzip.compress(packed)
    elif kind == 5:
        packed = random.randbytes(random.randint(0, 300))
    return packed, {"Content-Encoding": name}


@cache
def _bomb() -> bytes:
    """80 MiB of spaces."""
    return gzip.compress(b" " * (80 << 20))


def form_body(random: Random) -> Body:
    """multipart/form-data that is none, or is one too many."""
    mark = random.choice(("b", "b", "b", "", "a b", "é", "x" * 300, '"q"', "-" * 70))
    kind = random.randrange(9)
    head = 'Content-Disposition: form-data; name="a"; filename="a.png"\r\n\r\n'
    if kind == 0:
        head = random.choice(("", "\r\n", "\r\n\r\n", "X\r\n\r\n", ":\r\n\r\n", "a" * 5000 + ": b\r\n\r\n"))  # fmt: skip # noqa: E501
    elif kind == 1:
        head = 'Content-Disposition: form-data; name="a"; filename="../../x\0"\r\n\r\n'
    elif kind == 2:
        head = "Content-Disposition: form-data\r\n\r\n"
    file = image_file(random)
    one = f"--{mark}\r\n{head}".encode() + file + b"\r\n"
    body = one * random.choice((0, 1, 1, 2, 300 if len(one) < 2000 else 3))
    body += random.choice((f"--{mark}--\r\n".encode(), b"", b"--", b"\r\n" * 100))
    if kind == 3:
        body = damaged(random, body or b"x")
    elif kind == 4:
        body = f'--{mark}\r\nContent-Disposition: form-data; name="f"\r\n\r\nv\r\n'.encode() * 1100
    given = f"multipart/form-data; boundary={mark}"
    if kind == 5:
        given = random.choice(("multipart/form-data", "multipart/mixed; boundary=b", "multipart/", given + "; charset=utf-99"))  # fmt: skip # noqa: E501
    return body, {"Content-Type": given}


def image_body(random: Random) -> Body:
    """An image as the body, of a type that it may not have."""
    kind = random.choice(
        ("image/png", "image/jpeg", "application/octet-stream", "image/", "text/x")
    )
    return image_file(random), {"Content-Type": kind}


def image_file(random: Random) -> bytes:
    """An image file that is damaged, or lies about itself."""
    kind = random.randrange(10)
    if kind == 0:
        return random.choice((b"", b"x", b"<svg/>", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe1", b"GIF89a", b"BM", b"RIFF\0\0\0\0WEBPVP8 ", b"II*\0", b"P6 9999999 9999999 255\n", b"P5\n-1 4\n255\n", b"8BPS", b"%!PS-Adobe-3.0 EPSF-3.0\n"))  # fmt: skip # noqa: E501
    stream = io.BytesIO()
    mode = random.choice(("RGB", "L", "RGBA", "P", "1", "I;16", "LA", "CMYK", "F"))
    size = random.choice(((8, 8), (1, 1), (40, 3), (1, 300)))
    image = Image.new(mode, size, 1)
    known = {"PNG": ("RGB", "L", "RGBA", "P", "1", "I;16", "LA"), "JPEG": ("RGB", "L", "CMYK"), "GIF": ("L", "P"), "BMP": ("RGB", "L", "P", "1"), "WEBP": ("RGB", "RGBA"), "TIFF": ("RGB", "L", "P", "1", "I;16", "LA", "CMYK", "RGBA", "F"), "PPM": ("RGB", "L", "1")}  # fmt: skip # noqa: E501
    form = random.choice([name for name, modes in known.items() if mode in modes])
    options: dict[str, Any] = {}
    if kind == 1 and form in ("JPEG", "PNG", "WEBP", "TIFF"):
        exif = Image.Exif()
        exif[0x0112] = random.choice((0, 3, 6, 8, 9, 255, 65535))
        options["exif"] = damaged(random, exif.tobytes()) if form == "JPEG" else exif.tobytes()
    image.save(stream, form, **options)
    data = stream.getvalue()
    if kind in (2, 3) and form == "PNG":  # the size that the head names, its checksum made right
        wide, high = random.choice(((0, 0), (1, 1 << 31), (100_000, 100_000), (65535, 65535), (5000, 4999), (8, 9)))  # fmt: skip # noqa: E501
        head = b"IHDR" + struct.pack(">II", wide & 0xFFFFFFFF, high & 0xFFFFFFFF) + data[24:29]
        data = data[:12] + head + struct.pack(">I", zlib.crc32(head)) + data[33:]
    elif kind == 4:
        data = data[: random.randrange(len(data))]
    elif kind != 9:
        data = damaged(random, data)
    return data


def damaged(random: Random, data: bytes) -> bytes:
    """The same with bits flipped, pieces cut out, doubled or overwritten."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8, 30))):
        if not found:
            break
        place, kind = random.randrange(len(found)), random.randrange(5)
        if kind == 0:
            found[place] ^= 1 << random.randrange(8)
        elif kind == 1:
            found[place] = random.choice((0, 255, 127, 128, 34, 92, 91, 123))
        elif kind == 2:
            del found[place : place + random.randint(1, 9)]
        elif kind == 3:
            found[place:place] = found[place : place + random.randint(1, 40)]
        else:
            found[place:place] = random.randbytes(random.randint(1, 9))
    return bytes(found)

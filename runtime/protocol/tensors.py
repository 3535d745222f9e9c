"""Tensors as the protocol sends them: in JSON, as raw little-endian bytes, or in a message."""

from __future__ import annotations

import base64
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any

import numpy as np

from prunion.runtime.base import shown
from prunion.runtime.errors import InputError

__all__ = ["Tensor", "json_tensor", "pack_bytes_tensor", "raw_tensor", "shape_of", "with_content"]

DTYPES: dict[str, np.dtype[Any]] = {
    "FP16": np.dtype("<f2"),
    "FP32": np.dtype("<f4"),
    "UINT8": np.dtype("u1"),
    "INT64": np.dtype("<i8"),
}
TAKEN = (*DTYPES, "BYTES")
# What JSON says of each, in words and as Python's types.
NUMBERS: tuple[str, set[type]] = ("numbers", {int, float})
JSON_TYPES: dict[str, tuple[str, set[type]]] = {
    "INT64": ("whole numbers", {int}),
    "BYTES": ("texts", {str}),
}
# What other servers' clients say of elements that are sent as they are.
AS_IT_IS = (None, "str", "np")
# How PNG, JPEG, GIF, WebP, BMP and TIFF files begin as base64, and no image file as it is.
ENCODED = (b"iVBORw0K", b"/9j/", b"R0lGOD", b"UklGR", b"Qk", b"SUkq", b"TU0A", b"data:image/")
MOST_DIMENSIONS = 8
MOST_VALUES = 1 << 40

MOST_ITEMS = 1 << 16  # of a tensor whose elements become Python objects, one by one


@dataclass(frozen=True, eq=False)
class Tensor:
    """One input.

    Attributes:
        data: an array of `shape` for FP16, FP32 and UINT8; flat lists of int for INT64 (which JSON
            does not bound) and of bytes for BYTES.
    """

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: np.ndarray | list[int] | list[bytes]


def shape_of(name: str, shape: Any) -> tuple[int, ...]:
    """A checked shape. Raises InputError."""
    fine = isinstance(shape, (list, tuple)) and all(type(n) is int and n >= 0 for n in shape)
    if not fine or len(shape) > MOST_DIMENSIONS:
        raise InputError(f"`{name}` has no shape of whole numbers")
    # Also of what holds nothing, where one dimension is 0: numpy counts the others.
    if math.prod(n or 1 for n in shape) > MOST_VALUES:
        raise InputError(f"`{name}` has the shape {shown(list(shape))}: no request holds so much")
    return tuple(shape)


def json_tensor(entry: Mapping[str, Any]) -> Tensor:
    """A tensor whose `data` is JSON, flat or nested as its shape. Raises InputError."""
    name, datatype = str(entry.get("name"))[:100], str(entry.get("datatype"))[:100]
    shape, data = shape_of(name, entry.get("shape")), entry.get("data")
    _check_type(name, datatype)
    if not isinstance(data, list):
        raise InputError(f"`{name}` has no list `data`")
    values = _flat(name, shape, data)
    words, kinds = JSON_TYPES.get(datatype, NUMBERS)
    # By type: in Python a boolean is a number too, and would count as 0 or 1.
    if not set(map(type, values)) <= kinds:
        raise InputError(f"`{name}.data` must hold {words} only, as its datatype {datatype} says")
    held: np.ndarray | list[int] | list[bytes] = values
    if datatype == "BYTES":
        held = _texts(name, values)
    elif datatype != "INT64":
        held = _numbers(name, datatype, shape, values)
    return with_content(Tensor(name, datatype, shape, held), entry.get("parameters") or {})


def raw_tensor(
    name: str, datatype: str, shape: tuple[int, ...], data: bytes | memoryview
) -> Tensor:
    """A tensor from its bytes: little-endian, row by row; BYTES elements have their length before
    them, four bytes. Raises InputError where the count does not fit."""
    _check_type(name, datatype)
    if datatype in ("BYTES", "INT64") and math.prod(shape) > MOST_ITEMS:
        raise InputError(
            f"`{name}` has the shape {shown(list(shape))}: send at most {MOST_ITEMS:,} elements"
        )
    if datatype == "BYTES":
        items = _split_bytes(name, data, math.prod(shape))
        _check_count(name, shape, len(items))
        return Tensor(name, datatype, shape, items)
    dtype = DTYPES[datatype]
    expected = math.prod(shape) * dtype.itemsize
    if len(data) != expected:
        raise InputError(
            f"`{name}` has {len(data)} bytes, its shape {shown(list(shape))} as {datatype} takes "
            f"{shown(expected)}"
        )
    array = np.frombuffer(data, dtype)
    values = array.tolist() if datatype == "INT64" else array.reshape(shape)
    return Tensor(name, datatype, shape, values)


def with_content(tensor: Tensor, parameters: Mapping[str, Any]) -> Tensor:
    """A tensor of what its `content_type` says its elements are; of numbers it says nothing.

    Raises InputError for another than is known: what it stands for would be taken as it is.
    """
    kind, name = parameters.get("content_type"), tensor.name
    if kind is not None and not isinstance(kind, str):
        raise InputError(f"`{name}`'s content_type is {shown(kind)}: send text, such as 'base64'")
    if tensor.datatype != "BYTES" or kind in AS_IT_IS:
        items = tensor.data if tensor.datatype == "BYTES" and name == "image" else ()
        if any(isinstance(item, bytes) and item.startswith(ENCODED) for item in items):
            raise InputError(
                f"`{name}` holds base64 text: say so, with the parameter content_type 'base64', "
                "and send nothing before it"
            )
        return tensor
    if kind != "base64":
        raise InputError(
            f"`{name}`'s content_type is {shown(kind)}: send 'base64', or 'str' or none for what "
            "it is as it stands"
        )
    try:
        texts = [item for item in tensor.data if isinstance(item, bytes)]
        return replace(tensor, data=[base64.b64decode(text, validate=True) for text in texts])
    except ValueError:  # its own error's base
        raise InputError(f"`{name}.data` is no base64, as its content_type says") from None


def pack_bytes_tensor(items: Iterable[bytes]) -> bytes:
    """A BYTES tensor's elements as they are sent."""
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def _check_type(name: str, datatype: str) -> None:
    if datatype not in TAKEN:
        raise InputError(f"`{name}` has the datatype {datatype}: send one of {', '.join(TAKEN)}")


def _check_count(name: str, shape: tuple[int, ...], count: int) -> None:
    if math.prod(shape) != count:
        raise InputError(f"`{name}` holds {count} values, its shape is {shown(list(shape))}")


def _flat(name: str, shape: tuple[int, ...], data: list[Any]) -> list[Any]:
    """The values of `data`, row by row, whether it is flat or nested exactly as `shape`.

    Nested in another way the same numbers would be another tensor, such as an image whose channels
    come last.
    """
    if list not in set(map(type, data)):
        _check_count(name, shape, len(data))
        return data
    rows: list[Any] = [data]
    for size in shape:
        if set(map(type, rows)) - {list} or set(map(len, rows)) - {size}:
            raise _nested_otherwise(name, shape)
        rows = list(chain.from_iterable(rows))
    if list in set(map(type, rows)):
        raise _nested_otherwise(name, shape)
    return rows


def _nested_otherwise(name: str, shape: tuple[int, ...]) -> InputError:
    return InputError(
        f"`{name}.data` is nested in another way than its shape {shown(list(shape))}: send it "
        "flat, or in lists of these lengths"
    )


def _texts(name: str, data: list[str]) -> list[bytes]:
    try:
        return [value.encode() for value in data]
    except UnicodeEncodeError:
        raise InputError(f"`{name}.data` holds half of a surrogate pair: send whole text") from None


def _numbers(
    name: str, datatype: str, shape: tuple[int, ...], data: list[int | float]
) -> np.ndarray:
    try:
        array = np.asarray(data)
    except OverflowError:  # a whole number beyond float64, beside fractions
        raise _beyond(name, datatype) from None
    if array.dtype.kind not in "iuf":  # whole numbers beyond 64 bits are objects to numpy
        raise _beyond(name, datatype)
    if datatype == "UINT8":
        whole = array.dtype.kind != "f"  # which numpy calls an empty one too
        if array.size and not (whole and 0 <= array.min() <= array.max() < 256):
            raise _beyond(name, datatype)
    elif not (np.abs(array) <= np.finfo(np.float32).max).all():
        raise _beyond(name, datatype)
    # JSON has no halves: what is called FP16 there comes as numbers like any other.
    kept = np.uint8 if datatype == "UINT8" else np.float32
    return np.asarray(array.astype(kept).reshape(shape))


def _beyond(name: str, datatype: str) -> InputError:
    if datatype == "UINT8":
        return InputError(f"`{name}.data` must hold whole numbers in 0..255")
    return InputError(f"`{name}.data` holds NaN, infinity or numbers beyond float32")


def _split_bytes(name: str, data: bytes | memoryview, count: int) -> list[bytes]:
    """At most `count + 1` elements: empty ones take four bytes each, and would be millions."""
    items: list[bytes] = []
    place = 0
    while place < len(data) and len(items) <= count:
        if place + 4 > len(data):
            raise InputError(f"`{name}` ends within the length of an element")
        (length,) = struct.unpack_from("<I", data, place)
        place += 4
        if place + length > len(data):
            raise InputError(f"`{name}` ends within an element of {length} bytes")
        items.append(bytes(data[place : place + length]))
        place += length
    return items

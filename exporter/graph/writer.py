"""An ONNX model written piece by piece: onnx.save holds two more copies of all weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import onnx

__all__ = ["save_graph"]


def save_graph(model: onnx.ModelProto, path: Path) -> None:
    """Write `model`; the bytes are what protobuf says, weight after weight."""
    graph = model.graph
    own = _without(graph, onnx.GraphProto(), "initializer").SerializeToString()
    tensor, whole = (
        kind.DESCRIPTOR.fields_by_name[name].number
        for kind, name in ((onnx.GraphProto, "initializer"), (onnx.ModelProto, "graph"))
    )
    heads = [_head(tensor, weight.ByteSize()) for weight in graph.initializer]
    size = len(own) + sum(map(len, heads)) + sum(x.ByteSize() for x in graph.initializer)

    def pieces() -> Iterator[bytes]:
        yield _without(model, onnx.ModelProto(), "graph").SerializeToString()
        yield _head(whole, size)
        yield own
        for head, weight in zip(heads, graph.initializer, strict=True):
            yield head
            yield weight.SerializeToString()

    with path.open("wb") as file:
        file.writelines(pieces())


def _without(message: Any, rest: Any, name: str) -> Any:
    """`rest` filled with every set field of `message` but `name`."""
    for field, value in message.ListFields():
        if field.name == name:
            continue
        if isinstance(value, str | int):
            setattr(rest, field.name, value)
        else:
            getattr(rest, field.name).extend(value)
    return rest


def _head(number: int, size: int) -> bytes:
    """Protobuf's tag of a length-delimited field, and the length."""
    return _varint(number << 3 | 2) + _varint(size)


def _varint(value: int) -> bytes:
    groups = []
    while True:
        value, low = value >> 7, value & 0x7F
        groups.append(low | (0x80 if value else 0))
        if not value:
            return bytes(groups)

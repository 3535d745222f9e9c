"""The protocol's gRPC messages, made from `open_inference.proto` when the server starts.

So there is no generated code to keep in step with a version of protobuf, and the messages live in
a pool of their own: a client of the same protocol may be imported beside them.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

__all__ = ["Method", "Schema", "parse_proto", "schema"]

FILE = Path(__file__).with_name("open_inference.proto")
TOKEN = re.compile(r'"[^"]*"|[A-Za-z_][\w.]*|\d+|[{}()<>=;,]')
Field = descriptor_pb2.FieldDescriptorProto
SCALARS = {
    "double": Field.TYPE_DOUBLE,
    "float": Field.TYPE_FLOAT,
    "int32": Field.TYPE_INT32,
    "int64": Field.TYPE_INT64,
    "uint32": Field.TYPE_UINT32,
    "uint64": Field.TYPE_UINT64,
    "bool": Field.TYPE_BOOL,
    "string": Field.TYPE_STRING,
    "bytes": Field.TYPE_BYTES,
}


@dataclass(frozen=True)
class Method:
    """One call of the service: its messages, and whether both sides are streams."""

    name: str
    request: str
    response: str
    stream: bool


@dataclass(frozen=True)
class Schema:
    """The service's full name and methods, and the class of each top-level message by its name."""

    service: str
    methods: tuple[Method, ...]
    messages: dict[str, Any]


@cache
def schema() -> Schema:
    """The schema of `open_inference.proto`."""
    file, methods = parse_proto(FILE.read_text("utf-8"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file) if hasattr(pool, "Add") else pool.AddSerializedFile(file.SerializeToString())
    messages = {
        message.name: message_factory.GetMessageClass(
            pool.FindMessageTypeByName(f"{file.package}.{message.name}")
        )
        for message in file.message_type
    }
    return Schema(f"{file.package}.{file.service[0].name}", methods, messages)


def parse_proto(text: str) -> tuple[descriptor_pb2.FileDescriptorProto, tuple[Method, ...]]:
    """A .proto file of messages, enums, maps, oneofs and one service: what this one uses."""
    tokens = iter(TOKEN.findall(re.sub(r"//.*", "", text)))
    file = descriptor_pb2.FileDescriptorProto(name=FILE.name, syntax="proto3")
    methods: list[Method] = []
    for word in tokens:
        if word == "syntax":
            _until(tokens, ";")
        elif word == "package":
            file.package = _until(tokens, ";")[0]
        elif word == "message":
            _message(tokens, file.message_type.add(name=next(tokens)), f".{file.package}")
        elif word == "enum":
            enum = file.enum_type.add(name=_until(tokens, "{")[0])
            while (name := next(tokens)) != "}":
                enum.value.add(name=name, number=int(_until(tokens, ";")[1]))
        else:
            assert word == "service", word
            file.service.add(name=_until(tokens, "{")[0])
            while next(tokens) != "}":
                methods.append(_method(tokens))
    enums = {f".{file.package}.{enum.name}" for enum in file.enum_type}
    for message in file.message_type:
        _resolve(message, file, enums)
    return file, tuple(methods)


def _until(tokens: Iterator[str], end: str) -> list[str]:
    found = []
    while (word := next(tokens)) != end:
        found.append(word)
    return found


def _method(tokens: Iterator[str]) -> Method:
    name = _until(tokens, "(")[0]
    request = _until(tokens, ")")
    _until(tokens, "(")
    response = _until(tokens, ")")
    _until(tokens, "}")
    return Method(name, request[-1], response[-1], request[0] == "stream")


def _message(tokens: Iterator[str], message: Any, scope: str) -> None:
    """Fill a message from behind its name to its closing brace."""
    assert next(tokens) == "{"
    own = f"{scope}.{message.name}"
    for word in tokens:
        if word == "}":
            return
        if word == "message":
            _message(tokens, message.nested_type.add(name=next(tokens)), own)
        elif word == "oneof":
            message.oneof_decl.add(name=_until(tokens, "{")[0])
            while (kind := next(tokens)) != "}":
                _field(tokens, message, kind).oneof_index = len(message.oneof_decl) - 1
        elif word == "map":
            _map(tokens, message, own)
        elif word == "repeated":
            _field(tokens, message, next(tokens)).label = Field.LABEL_REPEATED
        else:
            _field(tokens, message, word)


def _field(tokens: Iterator[str], message: Any, kind: str) -> Any:
    name, _, number = _until(tokens, ";")
    field = message.field.add(name=name, number=int(number), label=Field.LABEL_OPTIONAL)
    if kind in SCALARS:
        field.type = SCALARS[kind]
    else:
        field.type_name = kind  # resolved when all messages are known
    return field


def _map(tokens: Iterator[str], message: Any, own: str) -> None:
    key, _, value = _until(tokens, ">")[1:]
    name, _, number = _until(tokens, ";")
    entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
    entry.options.map_entry = True
    _field(iter(("key", "=", "1", ";")), entry, key)
    _field(iter(("value", "=", "2", ";")), entry, value)
    field = message.field.add(name=name, number=int(number), label=Field.LABEL_REPEATED)
    field.type, field.type_name = Field.TYPE_MESSAGE, f"{own}.{entry.name}"


def _resolve(message: Any, file: Any, enums: set[str]) -> None:
    """Full names for the types that fields name shortly: a message's own ones come first."""
    nested = {x.name for x in message.nested_type}
    for field in message.field:
        if field.type_name and not field.type_name.startswith("."):
            inner = f"{message.name}." if field.type_name in nested else ""
            field.type_name = f".{file.package}.{inner}{field.type_name}"
            field.type = Field.TYPE_ENUM if field.type_name in enums else Field.TYPE_MESSAGE
    for inner_message in message.nested_type:
        _resolve(inner_message, file, enums)

"""Protocol buffers that are wrong: messages whose fields do not fit, and bytes that are none."""

from __future__ import annotations

import struct
from collections.abc import Callable
from random import Random
from typing import Any

from prunion.runtime.protocol import schema
from tests.runtime.serve.malformed.bodies import PIXELS, TYPES, damaged, image_file

NAMES = ("toy", "signs", "", "x", "a" * 3000, "../x", "é", "\0", "toy\0")
NUMBERS = (0, 1, -1, 3, 1 << 31, -(1 << 63), (1 << 63) - 1, 1 << 40)
CALLS = (
    "ModelReady", "ModelMetadata", "ModelConfig", "ModelStatistics", "RepositoryIndex",
    "RepositoryModelLoad", "RepositoryModelUnload", "ServerMetadata", "ModelReady",
)  # fmt: skip


def right_message() -> Any:
    """A `ModelInferRequest` that the toy bundle answers."""
    message = schema().messages["ModelInferRequest"](model_name="toy", id="1")
    message.inputs.add(name="image", datatype="FP32", shape=[1, 3, 12, 10])
    message.inputs.add(name="domain", datatype="BYTES", shape=[1])
    raw = [struct.pack(f"<{PIXELS}f", *[0.1] * PIXELS), b"\5\0\0\0signs"]
    message.raw_input_contents.extend(raw)
    return message


def wrong_message(seed: int, number: int) -> tuple[str, bytes]:
    """A method of the service and what is sent to it; the same for the same seed and number."""
    random = Random(f"message {seed}:{number}")
    if random.random() < 0.15:
        method = random.choice(CALLS)
        name = next(x.request for x in schema().methods if x.name == method)
        message = schema().messages[name]()
        for field in ("name", "model_name", "version", "repository_name"):
            if field in message.DESCRIPTOR.fields_by_name:
                setattr(message, field, random.choice(NAMES))
        data = message.SerializeToString()
        return method, damaged(random, data) if random.random() < 0.5 else data
    message = right_message()
    for _ in range(random.randint(1, 3)):
        random.choice(CHANGES)(random, message)
    data = message.SerializeToString()
    kind = random.random()
    if kind < 0.25:
        data = damaged(random, data)
    elif kind < 0.3:
        data = data[: random.randrange(len(data))]
    elif kind < 0.35:
        data += random.choice((b"\xfa\x7f\x03abc", b"\xff" * 20, b"\x0b\x0b\x0b\x0c", data))
    elif kind < 0.37:
        data = random.randbytes(random.randint(0, 500))
    return random.choice(("ModelInfer", "ModelInfer", "ModelInfer", "ModelStreamInfer")), data


def _raw(random: Random, message: Any) -> None:
    raw = message.raw_input_contents
    kind = random.randrange(7)
    if kind == 0:
        raw.append(b"more")
    elif kind == 1:
        del raw[random.randrange(2) :]
    elif kind == 2 and raw:
        raw[0] = damaged(random, raw[0])
    elif kind == 3 and len(raw) > 1:
        raw[1] = random.choice((b"\xff\xff\xff\xff", b"\5\0\0\0", b"", b"\0", b"\1\0\0\0\xff"))
    elif kind == 4 and raw:
        file = image_file(random)
        raw[0] = struct.pack("<I", len(file)) + file
        message.inputs[0].datatype, message.inputs[0].shape[:] = "BYTES", [1]
    elif kind == 5:
        del raw[:]
        _contents(random, message)
    elif raw:
        raw[0] = bytes(random.choice((0, 1, 3, 1 << 20)))


def _contents(random: Random, message: Any) -> None:
    contents = random.choice(message.inputs).contents
    field = random.choice(list(contents.DESCRIPTOR.fields))
    count = random.choice((0, 1, PIXELS, 5000))
    values: Any = {"bytes": b"signs", "bool": True}.get(field.name.split("_")[0], 1)
    if field.name.startswith("fp"):
        values = random.choice((0.0, float("nan"), float("inf"), 1e38))
    getattr(contents, field.name).extend([values] * count)


def _shape(random: Random, message: Any) -> None:
    shape = [random.choice((*NUMBERS, 12, 10)) for _ in range(random.choice((0, 1, 2, 4, 9, 3000)))]
    random.choice(message.inputs).shape[:] = shape


def _datatype(random: Random, message: Any) -> None:
    random.choice(message.inputs).datatype = random.choice(TYPES)


def _names(random: Random, message: Any) -> None:
    kind = random.randrange(4)
    if kind == 0:
        message.model_name = random.choice(NAMES)
    elif kind == 1:
        message.model_version = random.choice(("0", "2", "x", "1" * 300, "-1"))
    elif kind == 2:
        message.id = random.choice(NAMES)
    else:
        random.choice(message.inputs).name = random.choice((*NAMES, "image", "domain"))


def _outputs(random: Random, message: Any) -> None:
    for _ in range(random.choice((1, 2, 400))):
        output = message.outputs.add(name=random.choice(("logits", "", "x")))
        _set(random, output.parameters[random.choice(("classification", "binary_data", ""))])


def _parameters(random: Random, message: Any) -> None:
    target = random.choice((message, random.choice(message.inputs)))
    names = ("priority", "timeout", "sequence_id", "shared_memory_region", "binary_data_size", "")
    _set(random, target.parameters[random.choice(names)])


def _inputs(random: Random, message: Any) -> None:
    if random.random() < 0.5:
        message.inputs.add().CopyFrom(random.choice(message.inputs))
    elif len(message.inputs) > 1:
        del message.inputs[random.randrange(len(message.inputs))]
    else:
        message.inputs.add(name="domain", datatype="INT64", shape=[1])


def _set(random: Random, parameter: Any) -> None:
    kind = random.randrange(6)
    if kind == 0:
        parameter.bool_param = True
    elif kind == 1:
        parameter.int64_param = random.choice(NUMBERS)
    elif kind == 2:
        parameter.string_param = random.choice(NAMES)
    elif kind == 3:
        parameter.double_param = random.choice((0.5, float("nan"), -1e300))
    elif kind == 4:
        parameter.uint64_param = random.choice((0, 1, 1 << 63, (1 << 64) - 1))


CHANGES: tuple[Callable[[Random, Any], None], ...] = (
    _raw, _raw, _contents, _shape, _datatype, _names, _outputs, _parameters, _inputs,
)  # fmt: skip

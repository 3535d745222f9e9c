"""An inference request, whichever way it came: JSON, JSON with raw tensors, or a message."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from prunion.runtime.base import json_of, shown
from prunion.runtime.errors import InputError
from prunion.runtime.graph import GraphForm
from prunion.runtime.protocol.tensors import (
    Tensor,
    json_tensor,
    raw_tensor,
    shape_of,
    with_content,
)

__all__ = [
    "USUAL_PRIORITY",
    "InferRequest",
    "Requested",
    "check_rows",
    "domains_of",
    "http_request",
    "images_of",
    "json_value",
    "known_keys",
    "make_request",
    "requested",
]

MAX_PRIORITY, USUAL_PRIORITY = 3, 2
MAX_ID = 1000
OUTPUTS = ("logits",)
# KServe's clients also say the model's name, which the path has.
KEYS = ("id", "parameters", "inputs", "outputs", "model_name", "model_version")
INPUT_KEYS, OUTPUT_KEYS = (
    ("name", "shape", "datatype", "parameters", "data"),
    ("name", "parameters"),
)
UNKNOWN = "send `id`, `parameters`, `inputs` and `outputs` as the Open Inference Protocol says"


@dataclass(frozen=True)
class Requested:
    """One output that is asked for; with `classification` K as its K best classes.

    `binary` is None where the request as a whole decides.
    """

    name: str = "logits"
    classification: int = 0
    binary: bool | None = None


@dataclass(frozen=True, eq=False)
class InferRequest:
    """A request whose form is right.

    Attributes:
        timeout: seconds in which the answer is wanted; None for the server's limit.
        priority: 1 first; 2 unless it is said.
        binary: whether outputs are wanted as raw tensors unless they say otherwise.
    """

    id: str
    tensors: Mapping[str, Tensor]
    outputs: tuple[Requested, ...]
    timeout: float | None = None
    priority: int = USUAL_PRIORITY
    binary: bool = False


def http_request(body: bytes, header_length: int | None) -> InferRequest:
    """A request's body; `header_length` bytes of JSON, then raw tensors, if that is given.

    Raises InputError.
    """
    rest = memoryview(b"")
    if header_length is not None:
        if not 0 <= header_length <= len(body):
            raise InputError(
                f"Inference-Header-Content-Length is {header_length} of {len(body)} bytes"
            )
        body, rest = body[:header_length], memoryview(body)[header_length:]
    value = json_value(body)
    if not isinstance(value, dict) or not isinstance(value.get("inputs"), list):
        raise InputError("the request must be an object with a list `inputs`")
    known_keys(value, KEYS, "the request")
    tensors, place = [], 0
    for entry in value["inputs"]:
        if not isinstance(entry, dict):
            raise InputError(f"`inputs` must hold objects: {UNKNOWN}")
        known_keys(entry, INPUT_KEYS, "an input")
        parameters = _object(entry.get("parameters"), "an input's `parameters`")
        _refuse_shared_memory(parameters)
        size = parameters.get("binary_data_size")
        if size is None:
            tensors.append(json_tensor(entry))
            continue
        if type(size) is not int or not 0 <= size <= len(rest) - place:
            raise InputError(
                f"binary_data_size is {shown(size)}, {len(rest) - place} bytes are left: send "
                "Inference-Header-Content-Length, and the tensors behind the JSON"
            )
        name = str(entry.get("name"))[:100]
        if entry.get("data") is not None:
            raise InputError(f"`{name}` has `data` beside its binary_data_size: send one")
        shape, datatype = shape_of(name, entry.get("shape")), str(entry.get("datatype"))[:100]
        tensor = raw_tensor(name, datatype, shape, rest[place : place + size])
        tensors.append(with_content(tensor, parameters))
        place += size
    if place != len(rest):
        raise InputError(f"{len(rest) - place} bytes are left behind the tensors: name their sizes")
    return make_request(
        value.get("id"), tensors, _json_outputs(value.get("outputs")), value.get("parameters")
    )


def json_value(body: bytes) -> Any:
    """What a body says as JSON. Raises InputError."""
    try:
        return json_of(body)
    except UnicodeDecodeError:
        raise InputError("the body is no JSON (its bytes are no text)") from None
    except (ValueError, RecursionError) as exc:
        raise InputError(f"the body is no JSON ({exc})") from None


def known_keys(value: Mapping[str, Any], known: Collection[str], what: str) -> None:
    """Raise InputError for a key that means nothing here: misspelt, it would be passed over."""
    unknown = next((key for key in value if key not in known), None)
    if unknown is not None:
        names = ", ".join(f"`{name}`" for name in known)
        close = difflib.get_close_matches(unknown[:100], known, n=1)
        fix = f"did you mean `{close[0]}`?" if close else "leave it out"
        raise InputError(f"{what} has {shown(unknown)}, which is none of {names}: {fix}")


def make_request(
    request_id: Any, tensors: list[Tensor], outputs: tuple[Requested, ...], parameters: Any
) -> InferRequest:
    """A request from its parts. Raises InputError for what this server does not do."""
    if request_id is not None and not isinstance(request_id, str):
        raise InputError("`id` must be text")
    text = request_id or ""
    if len(text) > MAX_ID or not _encodes(text):
        raise InputError(f"`id` must be text of at most {MAX_ID} characters")
    values = _object(parameters, "`parameters`")
    named = {tensor.name: tensor for tensor in tensors}
    if len(named) != len(tensors):
        raise InputError("inputs must be `image` and `domain`, each once")
    _refuse_shared_memory(values)
    sequence = values.get("sequence_id")
    # By type: `false` would be equal to 0.
    if sequence is not None and not (type(sequence) in (int, str) and not sequence):
        raise InputError("`sequence_id` asks for a stateful model: every request stands alone here")
    timeout, priority = values.get("timeout"), values.get("priority")
    if timeout is not None and (type(timeout) is not int or not 0 <= timeout < 1 << 62):
        raise InputError("`timeout` must be whole microseconds")
    if priority is None or (type(priority) is int and priority == 0):  # Triton's word for "default"
        priority = USUAL_PRIORITY
    if type(priority) is not int or not 1 <= priority <= MAX_PRIORITY:
        raise InputError(f"`priority` must be 1 (first) to {MAX_PRIORITY}")
    binary = values.get("binary_data_output", False)
    if not isinstance(binary, bool):
        raise InputError("`binary_data_output` must be true or false")
    return InferRequest(text, named, outputs, timeout / 1e6 if timeout else None, priority, binary)


def requested(name: Any, parameters: Mapping[str, Any]) -> Requested:
    """One requested output. Raises InputError if the model has none of that name."""
    if name not in OUTPUTS:
        raise InputError(f"there is no output {shown(name)}, only {', '.join(OUTPUTS)}")
    _refuse_shared_memory(parameters)
    count, binary = parameters.get("classification", 0), parameters.get("binary_data")
    if type(count) is not int or not 0 <= count <= 1_000_000:
        raise InputError("`classification` must be how many classes are wanted")
    if binary is not None and not isinstance(binary, bool):
        raise InputError("`binary_data` must be true or false")
    return Requested(str(name), count, binary)


def images_of(
    request: InferRequest, form: GraphForm, inputs: set[str], most: int
) -> np.ndarray | list[bytes]:
    """`image` of a request: an array as the graph takes it but for its checks, `[N, h, w, 3]`
    uint8 of any size, or encoded images.

    `inputs` are the model's; `most` is how many images a request may hold. Raises InputError.
    """
    unknown = sorted(request.tensors.keys() - inputs)
    if unknown or len(request.tensors) != len(inputs):
        names = " and ".join(f"`{name}`" for name in sorted(inputs, reverse=True))
        lacking = sorted(inputs - request.tensors.keys())
        found = f"unknown: {unknown}" if unknown else f"`{lacking[0]}` is not there"
        raise InputError(f"inputs must be {names}, each once; {found}")
    tensor = request.tensors["image"]
    if tensor.datatype == "BYTES":
        if len(tensor.shape) not in (1, 2) or tensor.shape[1:] not in ((), (1,)):
            raise InputError("`image` as BYTES must have the shape [N]: an image file each")
        check_rows(tensor.shape[0], most)
        return [item for item in tensor.data if isinstance(item, bytes)]
    raw = tensor.datatype == "UINT8"
    if len(tensor.shape) != 4 or tensor.datatype == "INT64" or (not raw and form.image == "uint8"):
        kind = "UINT8 of shape [N, H, W, 3]"
        if form.image != "uint8":
            kind = f"FP32 of shape [N, 3, H, W], {kind}"
        raise InputError(f"`image` must be {kind}, or BYTES of shape [N]")
    check_rows(tensor.shape[0], most)
    assert isinstance(tensor.data, np.ndarray)
    return tensor.data if raw else tensor.data.astype(np.float32, copy=False)


def check_rows(count: int, most: int) -> None:
    """Raise InputError unless a request's batch has a size that is taken."""
    if not 1 <= count <= most:
        raise InputError(f"the batch has {shown(count)} images: send 1 to {most} in a request")


def domains_of(request: InferRequest, count: int) -> list[int] | list[str]:
    """`domain` of a request: indices, or names. Raises InputError."""
    tensor = request.tensors["domain"]
    rows, data = tensor.shape[:1], tensor.data
    fine = tensor.datatype in ("INT64", "BYTES") and tensor.shape in (rows, (*rows, 1))
    if not fine or not rows or not isinstance(data, list):
        raise InputError("`domain` must be INT64 rows or BYTES names of shape [N]")
    if len(data) != count:
        raise InputError(f"{len(data)} domains for {count} images: give one for each")
    try:
        return [x.decode() for x in data if isinstance(x, bytes)] or [
            x for x in data if isinstance(x, int)
        ]
    except UnicodeDecodeError:
        raise InputError("`domain` holds bytes that are no UTF-8") from None


def _json_outputs(outputs: Any) -> tuple[Requested, ...]:
    if outputs is None:
        return ()
    if not isinstance(outputs, list) or any(not isinstance(x, dict) for x in outputs):
        raise InputError(f"`outputs` must be a list of objects: {UNKNOWN}")
    for entry in outputs:
        known_keys(entry, OUTPUT_KEYS, "an output")
    found = [
        requested(x.get("name"), _object(x.get("parameters"), "an output's `parameters`"))
        for x in outputs
    ]
    if len({x.name for x in found}) != len(found):
        raise InputError("an output is asked for twice")
    return tuple(found)


def _object(value: Any, what: str) -> Mapping[str, Any]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise InputError(f"{what} must be an object")
    return value


def _refuse_shared_memory(parameters: Mapping[str, Any]) -> None:
    if "shared_memory_region" in parameters:
        raise InputError("this server reads no shared memory: send the tensor")


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

"""Inference requests out of gRPC messages, and answers into them."""

from __future__ import annotations

from typing import Any

import numpy as np

from prunion.runtime.errors import InputError
from prunion.runtime.protocol.messages import schema
from prunion.runtime.protocol.request import InferRequest, make_request, requested
from prunion.runtime.protocol.response import VERSION, InferResponse
from prunion.runtime.protocol.tensors import Tensor, raw_tensor, shape_of, with_content

__all__ = ["grpc_request", "grpc_response"]

CONTENTS = {
    "FP32": ("fp32_contents", np.float32),
    "UINT8": ("uint_contents", np.uint8),
    "INT64": ("int64_contents", None),
    "BYTES": ("bytes_contents", None),
}


def grpc_request(message: Any) -> InferRequest:
    """A `ModelInferRequest`, its tensors raw or in their fields. Raises InputError."""
    raw = message.raw_input_contents
    if raw and len(raw) != len(message.inputs):
        raise InputError(f"{len(raw)} raw_input_contents for {len(message.inputs)} inputs")
    tensors = []
    for place, entry in enumerate(message.inputs):
        name, shape = entry.name[:100], shape_of(entry.name[:100], list(entry.shape))
        if "shared_memory_region" in entry.parameters:
            raise InputError("this server reads no shared memory: send the tensor")
        if raw:
            if entry.HasField("contents"):
                raise InputError(f"`{name}` has contents beside raw_input_contents: send one")
            tensor = raw_tensor(name, entry.datatype[:100], shape, raw[place])
        else:
            tensor = _filled(name, entry.datatype[:100], shape, entry.contents)
        tensors.append(with_content(tensor, _values(entry.parameters)))
    outputs = [requested(x.name, _values(x.parameters)) for x in message.outputs]
    if len({x.name for x in outputs}) != len(outputs):
        raise InputError("an output is asked for twice")
    return make_request(message.id, tensors, tuple(outputs), _values(message.parameters))


def grpc_response(response: InferResponse) -> Any:
    """A `ModelInferResponse` with raw contents."""
    message = schema().messages["ModelInferResponse"](
        model_name=response.model, model_version=VERSION, id=response.id
    )
    for output in response.outputs:
        message.outputs.add(name=output.name, datatype=output.datatype, shape=output.shape)
        message.raw_output_contents.append(output.raw())
    for key, value in response.parameters.items():
        message.parameters[key].string_param = value
    return message


def _values(parameters: Any) -> dict[str, Any]:
    found = {}
    for key, value in parameters.items():
        kind = value.WhichOneof("parameter_choice")
        found[key] = None if kind is None else getattr(value, kind)
    return found


def _filled(name: str, datatype: str, shape: tuple[int, ...], contents: Any) -> Tensor:
    if datatype not in CONTENTS:
        raise InputError(
            f"`{name}` as {datatype} has no contents of its own: send raw_input_contents, or one "
            f"of {', '.join(CONTENTS)}"
        )
    field, dtype = CONTENTS[datatype]
    others = sorted(kind.name for kind, _ in contents.ListFields() if kind.name != field)
    if others:
        raise InputError(f"`{name}` as {datatype} has {others[0]}: send {field} alone")
    values = getattr(contents, field)
    if int(np.prod(shape, dtype=object)) != len(values):
        raise InputError(f"`{name}` holds {len(values)} values, its shape is {list(shape)}")
    if dtype is None:
        return Tensor(name, datatype, shape, list(values))
    array = np.array(values, np.int64 if datatype == "UINT8" else dtype)
    if datatype == "UINT8" and array.size and array.max() > 255:
        raise InputError(f"`{name}` must hold whole numbers in 0..255")
    return Tensor(name, datatype, shape, array.astype(dtype).reshape(shape))

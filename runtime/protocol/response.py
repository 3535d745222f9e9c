"""The answer to an inference request: logits, or their best classes; as JSON or raw tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from prunion.runtime.protocol.request import InferRequest, Requested
from prunion.runtime.protocol.tensors import pack_bytes_tensor

__all__ = ["InferResponse", "Output", "http_response", "infer_response"]

LOWEST = np.float32(np.finfo(np.float32).min)
VERSION = "1"
ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"))


@dataclass(frozen=True, eq=False)
class Output:
    """One output: an array, or the elements of a BYTES tensor; `binary` as it was asked for."""

    name: str
    datatype: str
    shape: tuple[int, ...]
    data: np.ndarray | list[bytes]
    binary: bool = False

    def raw(self) -> bytes:
        """Its bytes as the binary extension and gRPC send them."""
        if isinstance(self.data, np.ndarray):
            return np.ascontiguousarray(self.data, "<f4").tobytes()
        return pack_bytes_tensor(self.data)


@dataclass(frozen=True, eq=False)
class InferResponse:
    """What goes back."""

    model: str
    id: str
    outputs: tuple[Output, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)


def infer_response(
    model: str,
    request: InferRequest,
    logits: np.ndarray,
    classes: Sequence[Sequence[str]],
    warning: str = "",
) -> InferResponse:
    """The outputs that were asked for, all of them if none was named.

    `logits` is `[N, Cmax]`, `classes` the class names of each row's domain; `warning`, if any, is
    one of the answer's parameters.
    """
    outputs = []
    for wanted in request.outputs or (Requested(),):
        binary = request.binary if wanted.binary is None else wanted.binary
        if wanted.classification:
            outputs.append(_classified(wanted, logits, classes, binary))
        else:
            outputs.append(Output(wanted.name, "FP32", logits.shape, logits, binary))
    parameters = {"warning": warning} if warning else {}
    return InferResponse(model, request.id, tuple(outputs), parameters)


def http_response(response: InferResponse) -> tuple[bytes, int | None]:
    """The body, and how much of it is JSON where raw tensors follow (else None).

    Past a domain's own classes the network answers -inf, which JSON cannot hold: there such logits
    are the lowest float32, -3.4028235e38.
    """
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for output in response.outputs:
        entry: dict[str, Any] = {
            "name": output.name,
            "datatype": output.datatype,
            "shape": list(output.shape),
        }
        if output.binary:
            tail.append(output.raw())
            entry["parameters"] = {"binary_data_size": len(tail[-1])}
        elif isinstance(output.data, np.ndarray):
            entry["data"] = np.maximum(output.data, LOWEST).ravel().tolist()
        else:
            entry["data"] = [item.decode() for item in output.data]
        outputs.append(entry)
    value: dict[str, Any] = {"model_name": response.model, "model_version": VERSION}
    if response.id:
        value["id"] = response.id
    if response.parameters:
        value["parameters"] = dict(response.parameters)
    value["outputs"] = outputs
    text = ENCODER.encode(value).encode()
    return b"".join([text, *tail]), len(text) if tail else None


def _classified(
    wanted: Requested, logits: np.ndarray, classes: Sequence[Sequence[str]], binary: bool
) -> Output:
    """The classification extension: `VALUE:INDEX:LABEL`, best first; rows of a domain with fewer
    classes end in empty elements."""
    width = min(wanted.classification, max(len(own) for own in classes))
    items: list[bytes] = []
    for row, own in zip(logits, classes, strict=True):
        best = np.argsort(-row[: len(own)], kind="stable")[:width]
        items += [f"{row[i]:f}:{i}:{own[i]}".encode() for i in best]
        items += [b""] * (width - len(best))
    return Output(wanted.name, "BYTES", (len(logits), width), items, binary)

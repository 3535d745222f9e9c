"""Weights of which a bundle holds single k×k slices: a bit for each, and those that are used.

Such a bundle's graphs have the shapes of these weights and no values. Whoever reads a graph gets it
filled: zeros where no domain uses a slice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from prunion.runtime.base import install_hint, reason_of
from prunion.runtime.bundle.held import HeldFile
from prunion.runtime.bundle.weight_parts import pack_bits, unpacked_slices
from prunion.runtime.errors import BundleError, MissingDependencyError

if TYPE_CHECKING:
    import onnx

__all__ = ["FilledGraph", "empty_weights", "packed_parts"]

FIX = "export it again"
MOST_BYTES = (1 << 31) - 1  # of an ONNX file
Parts = Mapping[str, np.ndarray]


def packed_parts(name: str, weight: np.ndarray, used: np.ndarray) -> dict[str, np.ndarray]:
    """What is stored of a weight `[O, I, …]` whose slices `used` `[O, I]` some domain uses."""
    slices = weight.reshape(*used.shape, -1)[used]
    return {f"union:{name}": pack_bits(used), f"packed:{name}": slices.astype(np.float32)}


def empty_weights(model: onnx.ModelProto, parts: Parts) -> None:
    """Take the values of all weights that `parts` hold out of a graph, in place."""
    for tensor in model.graph.initializer:
        if f"packed:{tensor.name}" in parts:
            for field in ("raw_data", "float_data"):
                tensor.ClearField(field)


class FilledGraph(HeldFile):
    """A graph's file, and the weights that its bundle holds apart.

    `size` is that of the filled graph, in bytes, up to seven slices of each weight more.
    """

    def __init__(self, file: HeldFile, parts: Parts) -> None:
        self.path, self._file, self._parts = file.path, file, parts
        self.size, digest = file.size, hashlib.sha256(file.sha256.encode())
        for key, values in sorted(parts.items()):
            part, _, name = key.partition(":")
            if part == "packed" and values.ndim > 1:
                union = parts.get(f"union:{name}")
                self.size += 0 if union is None else 8 * union.size * 4 * values.shape[1]
            if part in {"packed", "union"}:
                digest.update(f"{key} {values.shape}\n".encode())
                digest.update(values.tobytes())
        self.sha256 = digest.hexdigest()

    def read(self) -> bytes:
        """The graph with its weights. Raises BundleError where the two do not fit each other."""
        # Bits fix how large a weight is, so this bounds all that is allocated below.
        if self.size > MOST_BYTES:
            raise BundleError(
                f"{self.path} has {self.size:,} bytes with its weights, over {MOST_BYTES:,}: {FIX}"
            )
        try:
            return self._filled()
        except MemoryError:
            raise BundleError(
                f"{self.path} has {self.size:,} bytes with its weights, which this machine's "
                "memory does not hold: export a smaller network"
            ) from None

    def _filled(self) -> bytes:
        onnx = _onnx()
        try:
            model = onnx.load_from_string(self._file.read())
        except (BundleError, MemoryError):
            raise
        except Exception as exc:  # protobuf raises its own, unrelated types
            reason = reason_of(exc)
            raise BundleError(f"{self.path} is no readable ONNX file ({reason}): {FIX}") from None
        tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        for key, values in self._parts.items():
            part, _, name = key.partition(":")
            if part != "packed":
                continue
            if name not in tensors:
                raise BundleError(f"{self.path} holds no weight {name!r}: {FIX}")
            tensor, union = tensors[name], self._parts.get(f"union:{name}")
            if union is None:
                raise BundleError(f"{self.path}: {name!r} has no bits of its slices: {FIX}")
            try:
                weight = unpacked_slices(tuple(tensor.dims), union, values)
            except (IndexError, ValueError) as exc:
                raise BundleError(f"{self.path}: {name!r}: {reason_of(exc)}: {FIX}") from None
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, name))
        return bytes(model.SerializeToString())

    def close(self) -> None:
        """Give the file back."""
        self._file.close()


def _onnx() -> ModuleType:
    try:
        import onnx
        import onnx.numpy_helper
    except ImportError:
        raise MissingDependencyError(
            f"this needs the package onnx: {install_hint('ort')}"
        ) from None
    return onnx

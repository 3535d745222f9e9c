"""A mixed graph as it is read to be rewritten: shapes, constants, and what comes from the bank."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import numpy as np

from prunion.runtime.errors import UnsupportedGraphError
from prunion.runtime.graph.check import light_copy
from prunion.runtime.graph.inputs import TABLE_INPUTS, load_graph
from prunion.runtime.graph.norms import bank_parts

if TYPE_CHECKING:
    import onnx

__all__ = ["MixedGraph"]


class MixedGraph:
    """Facts about a mixed graph, whose tables are inputs with defaults.

    Raises UnsupportedGraphError if it has no bank that scales anything, BundleError if it is no
    readable ONNX file.
    """

    def __init__(self, graph: bytes) -> None:
        self.model, onnx = load_graph(graph)
        source = self.model.graph
        self._arrays = {
            x.name: onnx.numpy_helper.to_array(x)
            for x in source.initializer
            if x.name not in TABLE_INPUTS
        }
        inferred = onnx.shape_inference.infer_shapes(light_copy(self.model)).graph
        self._shapes = {
            x.name: tuple(d.dim_value for d in x.type.tensor_type.shape.dim)
            for x in (*inferred.value_info, *source.input)
        }
        self._parts = _columns(source, onnx)
        self._uses = Counter(name for node in source.node for name in node.input)
        self._uses.update(x.name for x in source.output)

    def shape(self, name: str) -> tuple[int, int, int] | None:
        """Channels, height and width of an activation, None where they are not known."""
        found = self._shapes.get(name, ())
        return (found[1], found[2], found[3]) if len(found) == 4 and all(found[1:]) else None

    def array(self, name: str) -> np.ndarray | None:
        """A constant, None where it is none."""
        return self._arrays.get(name)

    def number(self, name: str) -> float | None:
        """A constant of one number."""
        array = self.array(name)
        return float(array.reshape(-1)[0]) if array is not None and array.size == 1 else None

    def columns(self, name: str) -> np.ndarray | None:
        """The bank's columns that a tensor holds, None if it is none of them."""
        return self._parts.get(name)

    def once(self, name: str) -> bool:
        """Whether a tensor has one reader only."""
        return self._uses[name] == 1


def _columns(source: onnx.GraphProto, onnx: Any) -> dict[str, np.ndarray]:
    """What is computed from the bank's row alone, of a bank whose values are their columns."""
    bank = next((x for x in source.initializer if x.name == "bank"), None)
    if bank is None:
        raise UnsupportedGraphError("it has no bank")
    light = onnx.GraphProto()
    light.node.extend(source.node)
    whole = onnx.TensorProto.INT64
    light.initializer.extend(x for x in source.initializer if x.data_type == whole)
    numbered = np.arange(bank.dims[1], dtype=np.int64)[None]
    for name, array in (("bank", numbered), ("domain", np.zeros(1, np.int64))):
        light.initializer.append(onnx.numpy_helper.from_array(array, name))
    parts = bank_parts(light)
    found = {
        name: x.reshape(-1) for name, x in parts.items() if x.ndim == 4 and x.shape[1] == x.size
    }
    if not found:
        raise UnsupportedGraphError("nothing in it is scaled by the bank")
    return found

"""The graph that an engine is built from; on Turing (SM 7.5) without float32 matrix products.

TensorRT-RTX has none there, so each is written as a product and a sum.
"""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from prunion.runtime.errors import UnsupportedGraphError
from prunion.runtime.graph import (
    ADAPTERS,
    attribute,
    input_types,
    inputs_without_defaults,
    load_graph,
)
from prunion.runtime.tensorrt.key import EngineKey

if TYPE_CHECKING:
    import onnx

__all__ = ["engine_graph", "without_products"]

TURING = 75


def engine_graph(graph: Path | str | bytes, key: EngineKey) -> bytes:
    """The graph that the engine of `key` is built from: its tables are inputs that must be fed."""
    plain = inputs_without_defaults(graph)
    if TURING in key.sms and key.target == "tensorrt-rtx":
        if ADAPTERS in input_types(plain):  # as sums they would take a map for each two channels
            raise UnsupportedGraphError(
                f"{key.target} has no float32 matrix products on SM {TURING / 10}, and adapters "
                "are such: build for SM 8.0 or later, or export one domain with --specialise"
            )
        return without_products(plain)
    return plain


def without_products(graph: bytes) -> bytes:
    """The same graph with every matrix product written as a product and a sum.

    `[…, M, K] @ […, K, N]` becomes the sum over K of `[…, M, K, 1] * […, 1, K, N]`: the same
    function. Heads are small beside the trunk, and a gathered one is read once either way.
    """
    model, onnx = load_graph(graph)
    nodes = [made for node in model.graph.node for made in _without_product(onnx, node)]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    for axis in (-1, -2, -3):
        name, value = f"turing_axis{axis}", np.array([axis])
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    return bytes(model.SerializeToString())


def _without_product(onnx: ModuleType, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """What stands for a node: itself, if it is no matrix product."""
    if node.op_type == "MatMul":
        return _product(onnx, node.input[0], node.input[1], node.output[0])
    return _gemm(onnx, node) if node.op_type == "Gemm" else [node]


def _product(onnx: ModuleType, left: str, right: str, output: str) -> list[onnx.NodeProto]:
    node = onnx.helper.make_node
    columns, rows, products = (f"{output}_{part}" for part in ("columns", "rows", "products"))
    return [
        node("Unsqueeze", [left, "turing_axis-1"], [columns], columns),
        node("Unsqueeze", [right, "turing_axis-3"], [rows], rows),
        node("Mul", [columns, rows], [products], products),
        node("ReduceSum", [products, "turing_axis-2"], [output], output, keepdims=0),
    ]


def _gemm(onnx: ModuleType, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    factors = {a.name: a.f for a in node.attribute if a.name in ("alpha", "beta")}
    if attribute(node, "transA", 0) or any(factor != 1.0 for factor in factors.values()):
        raise UnsupportedGraphError(
            f"node {node.name!r} (Gemm) scales or transposes its input: build for SM 8.0 or later"
        )
    made, right, output = [], node.input[1], node.output[0]
    if attribute(node, "transB", 0):
        right = f"{output}_turned"
        turn = onnx.helper.make_node("Transpose", [node.input[1]], [right], right, perm=[1, 0])
        made.append(turn)
    biased = len(node.input) > 2 and bool(node.input[2])
    product = f"{output}_product" if biased else output
    made += _product(onnx, node.input[0], right, product)
    if biased:
        made.append(onnx.helper.make_node("Add", [product, node.input[2]], [output], output))
    return made

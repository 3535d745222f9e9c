"""One product over the classes of all domains, then each image picks its own domain's.

Faster than gathering a padded classifier per image from thousands of classes on.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from prunion.runtime.errors import UnsupportedGraphError

__all__ = ["concatenate_heads"]


def concatenate_heads(model: onnx.ModelProto, classes: Sequence[int]) -> None:
    """Rewrite the gathered head of an exported graph in place.

    `head_weight` becomes `[F, T]`, T the classes of all domains one after the other;
    `head_columns` `[D, Cmax]` int64 says which of them are a domain's own (0 past them, where
    `head_bias` `[D, Cmax]` is -inf as before). All stay optional inputs, D and T symbolic.

    Args:
        classes: number of classes of each domain.
    """
    graph = model.graph
    gather = _reader(graph, "head_weight")
    product = _reader(graph, gather.output[0])
    squeeze = _reader(graph, product.output[0])
    spread = next(n for n in graph.node if product.input[0] in n.output)
    ops = (gather.op_type, spread.op_type, product.op_type, squeeze.op_type)
    if ops != ("Gather", "Unsqueeze", "MatMul", "Squeeze"):
        raise UnsupportedGraphError(f"the head was exported as {ops}: use --heads gathered")
    features, domain = spread.input[0], gather.input[1]
    new = [
        helper.make_node("MatMul", [features, "head_weight"], ["head_all"], "head_all"),
        helper.make_node("Gather", ["head_columns", domain], ["head_own"], "head_own", axis=0),
        helper.make_node(
            "GatherElements", ["head_all", "head_own"], [squeeze.output[0]], "head_pick", axis=1
        ),
    ]
    nodes = list(graph.node)
    place = nodes.index(squeeze)
    gone = [n.output[0] for n in (gather, spread, product, squeeze)]
    before = [n for n in nodes[:place] if n.output[0] not in gone]
    after = [n for n in nodes[place:] if n.output[0] not in gone]
    del graph.node[:], graph.value_info[:]
    graph.node.extend([*before, *new, *after])
    _tables(graph, classes)
    onnx.checker.check_model(model, full_check=True)


def _reader(graph: onnx.GraphProto, name: str) -> onnx.NodeProto:
    reader: onnx.NodeProto = next(n for n in graph.node if name in n.input)
    return reader


def _tables(graph: onnx.GraphProto, classes: Sequence[int]) -> None:
    stored = next(i for i in graph.initializer if i.name == "head_weight")
    weight = numpy_helper.to_array(stored)
    joined = np.concatenate([weight[d, :, :n] for d, n in enumerate(classes)], axis=1)
    stored.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(joined), "head_weight"))
    columns = np.zeros((len(classes), max(classes)), dtype=np.int64)
    starts = np.cumsum([0, *classes])
    for domain, count in enumerate(classes):
        columns[domain, :count] = np.arange(starts[domain], starts[domain + 1])
    graph.initializer.append(numpy_helper.from_array(columns, "head_columns"))
    inputs = {i.name: i for i in graph.input}
    shape = [weight.shape[1], "T"]
    inputs["head_weight"].CopyFrom(
        helper.make_tensor_value_info("head_weight", TensorProto.FLOAT, shape)
    )
    info = helper.make_tensor_value_info("head_columns", TensorProto.INT64, ["D", "Cmax"])
    graph.input.append(info)

"""Weights that torch's exporter stores transposed get their names and places back."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from prunion.exporter.graph.build import _turn_back
from prunion.exporter.graph.opset import restate


def model_with(**weights: np.ndarray) -> onnx.ModelProto:
    held = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])
    graph = helper.make_graph([], "g", [x], [x], held)
    return helper.make_model(graph)


def test_a_weight_that_has_its_own_name_is_not_taken_for_another() -> None:
    """Both are zero, as before any training."""
    trunk = nn.ModuleDict({"a": nn.Linear(3, 3, bias=False), "b": nn.Linear(3, 3, bias=False)})
    for weight in trunk.parameters():
        nn.init.zeros_(weight)
    zeros = np.zeros((3, 3), np.float32)
    model = model_with(**{"a.weight": zeros, "val_3": zeros})
    _turn_back(model, trunk)
    assert {x.name for x in model.graph.initializer} == {"a.weight", "b.weight"}
    (node,) = model.graph.node
    assert (list(node.input), list(node.output)) == (["b.weight"], ["val_3"])


def test_a_transposed_weight_is_turned_back() -> None:
    trunk = nn.ModuleDict({"a": nn.Linear(3, 2, bias=False)})
    weight = next(trunk.parameters()).detach()
    model = model_with(val_0=weight.t().contiguous().numpy(), other=np.ones((3, 2), np.float32))
    _turn_back(model, trunk)
    held = {x.name: numpy_helper.to_array(x) for x in model.graph.initializer}
    assert set(held) == {"a.weight", "other"}
    assert torch.equal(torch.from_numpy(held["a.weight"].copy()), weight)


@pytest.mark.parametrize("stored", ["initializer", "node"])
def test_an_older_operator_set_leaves_no_constant_that_nobody_reads(stored: str) -> None:
    """ONNX Runtime warns of each one, at every load."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"], keepdims=1),
        helper.make_node("Add", ["mean", "b"], ["y"]),
    ]
    axes = numpy_helper.from_array(np.array([1], np.int64), "axes")
    held = [numpy_helper.from_array(np.ones((1, 1), np.float32), "b")]
    if stored == "initializer":
        held.append(axes)
    else:
        nodes.insert(0, helper.make_node("Constant", [], ["axes"], value=axes))
    ends = [value(name, TensorProto.FLOAT, [1, size]) for name, size in (("x", 3), ("y", 1))]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], held)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    restate(model, 17)
    assert [x.name for x in model.graph.initializer] == ["b"]
    assert [x.op_type for x in model.graph.node] == ["ReduceMean", "Add"]
    assert helper.get_node_attr_value(model.graph.node[0], "axes") == [1]

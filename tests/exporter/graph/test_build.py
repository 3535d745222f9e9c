"""Weights that torch's exporter stores transposed get their names and places back."""

from __future__ import annotations

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from prunion.exporter.graph.build import _turn_back


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

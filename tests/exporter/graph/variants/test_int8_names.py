"""A network's own tensors and those that the quantiser adds must not share a name."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from prunion.exporter.graph.variants.int8 import check_names
from prunion.runtime.errors import VerificationError


def scaled(name: str) -> onnx.ModelProto:
    """A convolution whose output is multiplied by a tensor called `name`."""
    nodes = [
        helper.make_node("Conv", ["image", "conv.weight"], ["a"], "conv"),
        helper.make_node("Mul", ["a", name], ["logits"], "scaled"),
    ]
    ends = [helper.make_tensor_value_info(n, 1, None) for n in ("image", "logits")]
    weights = {"conv.weight": np.ones((4, 3, 1, 1)), name: np.ones((1, 4, 1, 1))}
    tensors = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    return helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], tensors))


def test_a_tensor_of_the_quantisers_name_is_refused() -> None:
    """Its value took the place of the scale, or the graph could not run, once all was trained."""
    with pytest.raises(VerificationError, match=r"'conv\.weight_scale'.*leave out --int8"):
        check_names(scaled("conv.weight_scale"))
    with pytest.raises(VerificationError, match="'a_quantized'"):
        check_names(scaled("a_quantized"))


def test_other_names_pass() -> None:
    check_names(scaled("conv.scale"))

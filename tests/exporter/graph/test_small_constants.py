"""What keeps a division finite where nothing is in an image: every form has it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn
from torch.nn import functional

from prunion.exporter.graph import (
    check_one_colour,
    masked_logits,
    one_colour_probe,
    onnx_graph,
    open_graph,
    run_graph,
)
from prunion.exporter.graph.variants.activations import largest_values
from prunion.exporter.graph.variants.float16 import half_graph
from prunion.exporter.graph.variants.guards import guard_constants, guarding_nodes
from prunion.exporter.slim import slim_network
from prunion.runtime.errors import VerificationError
from tests.exporter.slim.test_network import switch_off
from tests.support.networks.small import domain_net

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.4)


class Contrast(nn.Module):
    """Contrast over its own strength, which an image of one colour has none of."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kinds = KINDS if kind == "every form" else [kind]
        self.conv, self.norm = (
            nn.Conv2d(3 * len(self.kinds), 8, 3, padding=1, bias=False),
            nn.BatchNorm2d(8),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x.amax((2, 3), keepdim=True) - x
        x = torch.cat([FORMS[kind](x) for kind in self.kinds], 1)
        return torch.relu(self.norm(self.conv(x))).mean((2, 3))


FORMS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "added": lambda x: x / (x.norm(dim=1, keepdim=True) + 1e-8),
    "added first": lambda x: x / (1e-9 + x.abs().sum(1, keepdim=True)),
    "clipped": lambda x: functional.normalize(x, dim=1),
    "root": lambda x: x * torch.rsqrt(x.pow(2).mean(1, keepdim=True) + 1e-12),
    "by hand": lambda x: x / ((x * x).sum(1, keepdim=True).sqrt() + 1e-8),
    "logarithm": lambda x: torch.log(x + 1e-9),
    "bare": lambda x: x / x.norm(dim=1, keepdim=True),
}


@cache
def exported(kind: str) -> tuple[np.ndarray, bytes]:
    """Torch's logits of images of one colour, and the graph."""
    net = switch_off(domain_net(Contrast(kind), (3, 5)))
    flat = one_colour_probe((8, 8), MEAN, STD, domains=2)
    logits = masked_logits(net, torch.from_numpy(flat.images), torch.from_numpy(flat.domains))
    return logits, onnx_graph(slim_network(net), 8, 8).SerializeToString()


KINDS = ["added", "added first", "clipped", "root", "by hand", "logarithm"]
# Which one it is, where they are wrong together, is seen by the thorough ones.
ASKED = ["every form", *(pytest.param(kind, marks=pytest.mark.thorough) for kind in KINDS)]


@pytest.mark.parametrize("kind", ASKED)
def test_the_graph_has_it(kind: str) -> None:
    """torch's exporter left out `+ 1e-8`, which it took for `+ 0`."""
    logits, graph = exported(kind)
    flat = one_colour_probe((8, 8), MEAN, STD, domains=2)
    found = run_graph(open_graph(graph), flat)
    check_one_colour(logits, found, flat, ["a", "b"], "ONNX Runtime")
    own = np.isfinite(logits)
    assert own.sum() == 3 * (3 + 5)
    np.testing.assert_allclose(found[own], logits[own], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ASKED)
def test_float16_has_it(kind: str) -> None:
    """In real float16 arithmetic, where 1e-8 is 0: what reads it stays float32."""
    logits, graph = exported(kind)
    flat = one_colour_probe((8, 8), MEAN, STD, domains=2)
    full, feeds = onnx.load_from_string(graph), {"image": flat.images, "domain": flat.domains}
    half = half_graph(full, largest=largest_values(full, [feeds]))
    (found,) = ReferenceEvaluator(half).run(["logits"], feeds)
    check_one_colour(logits, found, flat, ["a", "b"], "the fp16 graph")
    # The convolution is float16 as ever.
    values = {v.name: v.type.tensor_type.elem_type for v in half.graph.value_info}
    conv = next(n for n in half.graph.node if n.op_type == "Conv")
    assert values[conv.output[0]] == onnx.TensorProto.FLOAT16


def test_the_norm_that_a_constant_is_added_to_is_float32_too() -> None:
    """Small values squared are 0 in float16, and would be divided by the constant alone."""
    graph = onnx.load_from_string(exported("by hand")[1]).graph
    kept = guarding_nodes(graph, guard_constants(graph))
    kinds = [node.op_type for node in graph.node if node.output[0] in kept]
    assert kinds == ["Mul", "ReduceSum", "Sqrt", "Add", "Div"]


def test_nothing_is_guarded_where_nothing_is_small() -> None:
    graph = onnx.load_from_string(exported("bare")[1]).graph
    assert guarding_nodes(graph, guard_constants(graph)) == set()


def test_a_form_that_lost_it_is_refused() -> None:
    flat = one_colour_probe((8, 8), MEAN, STD, domains=2)
    logits = np.zeros((6, 3), np.float32)
    logits[flat.domains == 0, 2] = -np.inf  # past the classes of the first
    check_one_colour(logits, logits, flat, ["a", "b"], "x")
    lost = logits.copy()
    lost[flat.domains == 1, 0] = np.nan
    with pytest.raises(VerificationError, match="domain b: x has no finite answer of an image of"):
        check_one_colour(logits, lost, flat, ["a", "b"], "x")
    check_one_colour(lost, lost, flat, ["a", "b"], "x")  # torch has none either


def test_what_torch_itself_has_no_answer_of_is_left_alone() -> None:
    logits, graph = exported("bare")
    assert np.isnan(logits[:, 0]).all()
    flat = one_colour_probe((8, 8), MEAN, STD, domains=2)
    check_one_colour(logits, run_graph(open_graph(graph), flat), flat, ["a", "b"], "x")

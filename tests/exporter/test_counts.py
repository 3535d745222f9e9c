"""A graph's own nodes are counted as the network's layers were, however these are written."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import nn

from prunion.exporter.bundle.packs import graph_trunk_hash, trunk_hash
from prunion.exporter.counts import check_counts, recount
from prunion.exporter.graph import onnx_graph
from prunion.exporter.slim import SlimNet, slim_network
from prunion.runtime.errors import VerificationError
from prunion.runtime.measure.profile_layers import find_layers
from prunion.trainer.config import BackboneConfig
from prunion.trainer.network import DomainNet, rebuild_network
from tests.support.networks.counting import macs_by_running
from tests.support.networks.small import domain_net

SIDE = 8


class Stem(nn.Module):
    """Six channels that can go, eight, and a tensor without a module's name before its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 6, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU())
        self.conv, self.norm = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.table = nn.Parameter(torch.randn(1, 8, SIDE, SIDE))

    def stem(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.conv(self.first(x))).relu() + self.table

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.stem(x).mean((2, 3))


class Upwards(Stem):
    """The channels of one are cut; those of the groups are kept whole, and cost as others do."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.end = nn.ConvTranspose2d(8, 12, 2, 2, bias=False), nn.BatchNorm2d(12)
        self.groups = nn.ConvTranspose2d(12, 8, 4, 2, 1, groups=4, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.end(self.up(self.stem(x))).relu()
        return torch.cat([x.mean((2, 3)), self.groups(x).mean((2, 3))], 1)


class Flat(Stem):
    """A layer over all places of all images at once."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 16, bias=False), nn.Linear(16, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        n, c, h, w = x.shape
        y = self.down(self.up(x.permute(0, 2, 3, 1).reshape(-1, c)).relu())
        return (x + y.reshape(n, h, w, c).permute(0, 3, 1, 2)).mean((2, 3))


class Quarters(Stem):
    """Each quarter of a map goes through a convolution as an image of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.local = nn.Conv2d(8, 8, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        n, half = x.shape[0], SIDE // 2
        y = x.reshape(n, 8, 2, half, 2, half).permute(0, 2, 4, 1, 3, 5)
        y = self.local(y.reshape(n * 4, 8, half, half)).relu().reshape(n, 4, 8, half, half)
        return x.mean((2, 3)) + y.mean((1, 3, 4))


class TokensFirst(Stem):
    """The batch lies along the second axis, as many write attention."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, bias=False)
        self.last = nn.Linear(8, 8, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x).flatten(2).permute(2, 0, 1)
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.last(x).relu().mean(0)


class Product(Stem):
    """Linear layers written as products, on the right or the left."""

    def __init__(self, *forms: str) -> None:
        super().__init__()
        self.form, self.forms = forms[0] if len(forms) == 1 else "every product", forms
        for form in forms:
            weight = torch.randn(PRODUCTS[form])
            if form == "constant":
                self.register_buffer(form, weight)
            else:
                setattr(self, form, nn.Parameter(weight))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tokens, made = self.stem(x).flatten(2).transpose(1, 2), []  # [N, 64, 8]
        for form in self.forms:
            weight = getattr(self, form)
            made.append((weight @ tokens if form == "left" else tokens @ weight).relu().mean(1))
        return torch.cat(made, 1)


PRODUCTS = {"right": (8, 6), "left": (5, 64), "bmm": (1, 8, 6), "constant": (8, 6)}


FORMS: dict[str, tuple[tuple[int, ...], Callable[..., torch.Tensor]]] = {
    "addmm": ((8, 6), lambda x, w, b: torch.addmm(b, x, w)),
    "addmm, scaled": ((8, 6), lambda x, w, b: torch.addmm(b, x, w, beta=2, alpha=3)),
    "addmm, turned": ((6, 8), lambda x, w, b: torch.addmm(b, x, w.t())),
    "mm": ((8, 6), lambda x, w, b: torch.mm(x, w) + b),
    "mv": ((8,), lambda x, w, b: torch.mv(x, w)[:, None] + b),
    "inner": ((6, 8), lambda x, w, b: torch.inner(x, w) + b),
    "tensordot": ((8, 6), lambda x, w, b: torch.tensordot(x, w, dims=1) + b),
    "bilinear": ((6, 8, 8), lambda x, w, b: F.bilinear(x, x, w, b)),
    "linear": ((6, 8), lambda x, w, b: F.linear(x, w, b)),
    "linear on tokens": ((6, 8), lambda x, w, b: F.linear(x[:, None], w, b).mean(1)),
    "baddbmm": ((1, 8, 6), lambda x, w, b: x[:, :6] + torch.baddbmm(b, one(x), w).sum((0, 1))),
    "bmm": ((1, 8, 6), lambda x, w, b: x[:, :6] + torch.bmm(one(x), w).sum((0, 1)) + b),
    "vector": ((8,), lambda x, w, b: (x[:, None] @ w) + b),
    "mm, tokens as rows": (
        (8, 6),
        lambda x, w, b: (
            torch.mm(x[:, None].expand(-1, 3, -1).reshape(-1, 8), w).view(-1, 3, 6).mean(1) + b
        ),
    ),
    "einsum": ((6, 8), lambda x, w, b: torch.einsum("nc,oc->no", x, w) + b),
    "einsum, dots": ((6, 8), lambda x, w, b: torch.einsum("oc, ...c", w, x) + b),
}


def one(x: torch.Tensor) -> torch.Tensor:
    return (x[:1] * 0 + 1)[None]


class Written(Stem):
    """Linear layers over eight features, as one may write them."""

    def __init__(self, *forms: str) -> None:
        super().__init__()
        self.form, self.forms = forms[0] if len(forms) == 1 else "every form", forms
        self.inner = nn.ModuleList(nn.Module() for _ in forms)
        for inner, form in zip(self.inner, forms, strict=True):
            inner.weight = nn.Parameter(torch.randn(FORMS[form][0]))
            inner.bias = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, made = self.stem(x).mean((2, 3)), []
        for inner, form in zip(self.inner, self.forms, strict=True):
            made.append(FORMS[form][1](x, inner.weight, inner.bias).relu())
        return torch.cat(made, 1)


class Picked(Stem):
    """Whole numbers among its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Module()
        self.inner.register_buffer("order", torch.randperm(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem(x)
        return (x + x[:, self.inner.order]).mean((2, 3))


def cut(net: DomainNet) -> SlimNet:
    """Without its first channel."""
    dead = np.zeros(net.units.table.count, bool)
    dead[0] = True
    net.drop_units(dead)
    return slim_network(net)


@pytest.mark.parametrize(
    ("model", "weights"),
    [
        pytest.param(Stem(), 0, marks=pytest.mark.thorough),  # the others have it too
        (Upwards(), 8 * 12 * 4 + 12 * 2 * 16),
        (Flat(), 2 * 8 * 16),
        (Quarters(), 8 * 8 * 9),
        (TokensFirst(), 5 * 8 * 8),
        (Product(*PRODUCTS), sum(math.prod(shape) for shape in PRODUCTS.values())),
        *(  # which one it is, where they are wrong together
            pytest.param(Product(form), math.prod(PRODUCTS[form]), marks=pytest.mark.thorough)
            for form in PRODUCTS
        ),
        (Written(*FORMS), sum(math.prod(shape) for shape, _ in FORMS.values())),
        *(
            pytest.param(Written(form), math.prod(FORMS[form][0]), marks=pytest.mark.slow)
            for form in FORMS
        ),
        (Picked(), 0),
    ],
    ids=lambda x: getattr(x, "form", type(x).__name__),
)
def test_counts_and_hash_are_those_of_the_network(model: nn.Module, weights: int) -> None:
    net = domain_net(model.eval(), (2, 3), SIDE)
    table = net.units.table
    every = np.ones(table.count, bool)
    assert table.params(every) == 3 * 6 + 6 * 8 * 9 + weights
    assert table.macs(every) == macs_by_running(net, SIDE)
    backbone = BackboneConfig("lost:forever", "python")  # a checkpoint's graph counts alike
    again = rebuild_network(backbone, (SIDE, SIDE), [2, 3], net.graph, "the checkpoint's graph")
    assert again.units.table.to_json() == table.to_json()
    slim = cut(net)
    graph = onnx_graph(slim, SIDE, SIDE)
    left, counted = np.ones(slim.table.count, bool), recount(graph)
    assert counted.params == slim.table.params(left)
    assert sum(counted.macs.values()) == slim.table.macs(left)
    assert set(counted.shapes) == {layer.weight for layer in slim.table.layers}
    order = [[e.layer, e.kind, e.offset, e.size] for e in slim.entries]
    assert graph_trunk_hash(graph, order) == trunk_hash(slim)


def test_a_layer_is_timed_on_all_that_one_image_gives_it() -> None:
    slim = cut(domain_net(Quarters().eval(), (2, 3), SIDE))
    layers = find_layers(onnx_graph(slim, SIDE, SIDE), slim.table)
    assert (layers["local.weight"].parts, layers["local.weight"].image) == (4, (4, 4))
    assert layers["conv.weight"].parts == 1
    slim = cut(domain_net(Flat().eval(), (2, 3), SIDE))
    layer = find_layers(onnx_graph(slim, SIDE, SIDE), slim.table)["up.weight"]
    assert (layer.kind, layer.image) == ("tokens", (SIDE * SIDE,))


def test_a_graph_that_costs_other_than_was_counted_is_not_written() -> None:
    slim = cut(domain_net(Flat().eval(), (2, 3), SIDE))
    graph = onnx_graph(slim, SIDE, SIDE)
    check_counts(graph, slim.table)
    layers = [replace(x, positions=1) if x.weight == "up.weight" else x for x in slim.table.layers]
    wrong = replace(slim.table, layers=tuple(layers))
    with pytest.raises(VerificationError, match=r"layer up of .* 8,192 MACs, .* 128 and 128; noth"):
        check_counts(graph, wrong)
    with pytest.raises(VerificationError, match=r"layer up of .* was counted as 0 and 0"):
        check_counts(graph, replace(wrong, layers=tuple(x for x in layers if x.positions > 1)))


def test_copied_layers_are_counted_by_their_own_names() -> None:
    """torch's exporter would make one tensor of weights that are still equal."""

    class Copied(Stem):
        def __init__(self) -> None:
            super().__init__()
            one = nn.Conv2d(8, 8, 1, bias=False)
            self.more = nn.Sequential(one, nn.ReLU(), copy.deepcopy(one))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.more(self.stem(x)).mean((2, 3))

    slim = slim_network(domain_net(Copied().eval(), (2, 3), SIDE))
    graph = onnx_graph(slim, SIDE, SIDE)
    check_counts(graph, slim.table)
    stored = {x.name: numpy_helper.to_array(x) for x in graph.graph.initializer}
    np.testing.assert_array_equal(stored["more.0.weight"], stored["more.2.weight"])

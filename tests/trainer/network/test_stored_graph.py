"""A traced graph goes through JSON unchanged, and a graph from elsewhere can only compute."""

from __future__ import annotations

import copy
import json
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from prunion.runtime.errors import CheckpointError, UnsupportedGraphError
from prunion.trainer.backbone import load_backbone, trace
from prunion.trainer.config import BackboneConfig
from prunion.trainer.network import DomainNet, check_rebuilt, rebuild_network
from tests.support.networks.small import Depthwise, Plain, Residual, SqueezeExcite, domain_net

Graph = dict[str, Any]
ANY = BackboneConfig("lost:forever", "python")


class Mixture(nn.Module):
    """A constant, a buffer that is not kept, a dtype among the arguments, an infinite bound."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({"a-b": nn.Conv2d(3, 8, 3, bias=False)})
        self.bn = nn.BatchNorm2d(8)
        self.register_buffer("scale", torch.rand(1, 8, 1, 1) + 0.5, persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn(self.parts["a-b"](x)).clamp(0, float("inf"))
        x = x * self.scale * torch.tensor(1.5)
        a, b = x.to(torch.float32).chunk(2, 1)
        return torch.cat([b, a], 1).mean((2, 3))


class Positions(Plain):
    """A map that is made anew for each batch, on the images' device."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        free = torch.zeros(x.shape[0], 1, x.shape[2], x.shape[3], device=x.device).to(torch.bool)
        return (x * (~free).cumsum(2, dtype=torch.float32)).mean((2, 3))


def same(net: DomainNet, again: DomainNet) -> None:
    assert list(again.state_dict()) == list(net.state_dict())
    assert [n for n, _ in again.named_parameters()] == [n for n, _ in net.named_parameters()]
    assert again.units.table.to_json() == net.units.table.to_json()
    assert again.trunk.code == net.trunk.code
    assert again.graph == net.graph
    again.load_state_dict(net.state_dict())
    images, domains = torch.randn(3, 3, 8, 8), torch.tensor([0, 1, 1])
    with torch.no_grad():
        assert torch.equal(net.logits(images, domains), again.eval().logits(images, domains))


@pytest.mark.parametrize("kind", [Plain, Residual, Depthwise, SqueezeExcite, Mixture, Positions])
def test_a_rebuilt_network_is_the_same(kind: type[nn.Module]) -> None:
    net = domain_net(kind())
    graph = json.loads(json.dumps(net.graph, allow_nan=False))
    assert graph == net.graph, "a kept graph is compared with a file's as it is"
    same(net, rebuild_network(ANY, (8, 8), net.classes, graph, "graph.json"))


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("torchvision", "shufflenet_v2_x0_5"),
        pytest.param("timm", "tf_efficientnet_lite0", marks=pytest.mark.thorough),
    ],
)
def test_a_library_is_not_needed_again(source: str, name: str) -> None:
    config = BackboneConfig(name, source, weights="none")
    net = DomainNet(load_backbone(config, 32, 32), [2, 3]).eval()
    again = rebuild_network(config, (32, 32), [2, 3], net.graph, "graph.json")
    assert again.units.table.to_json() == net.units.table.to_json()
    assert list(again.state_dict()) == list(net.state_dict())


def test_a_file_never_makes_its_network_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"x/graph.json is missing, and only a function"):
        rebuild_network(ANY, (8, 8), [2], None, "x/graph.json")


def node(graph: Graph, kind: str) -> Graph:
    found: Graph = next(n for n in graph["nodes"] if kind in (n["op"], n.get("target")))
    return found


HOSTILE: dict[str, Callable[[Graph], object]] = {
    "not a list": lambda g: g.update(nodes=3),
    "version": lambda g: g.update(format_version=2),
    "empty": lambda g: g.update(nodes=[]),
    "other function": lambda g: node(g, "conv2d.default").update(target="os.system"),
    "reads a file": lambda g: node(g, "relu.default").update(target="from_file.default"),
    "overload": lambda g: node(g, "relu.default").update(target="relu.evil"),
    "dunder": lambda g: node(g, "relu.default").update(target="relu.__class__"),
    "method": lambda g: node(g, "relu.default").update(op="call_method", target="exec"),
    "module": lambda g: node(g, "relu.default").update(op="call_module", target="evil"),
    "name": lambda g: node(g, "relu.default").update(name="x = __import__('os')\n"),
    "keyword": lambda g: node(g, "relu.default").update(name="import"),
    "twice": lambda g: node(g, "relu.default").update(name=g["nodes"][0]["name"]),
    "key": lambda g: node(g, "relu.default").update(kwargs={"x=exec('1')": 1}),
    "unknown node": lambda g: node(g, "relu.default").update(args=[{"node": "nowhere"}]),
    "no constant": lambda g: node(g, "relu.default").update(args=[{"dtype": "load"}]),
    "device": lambda g: node(g, "relu.default").update(args=[{"device": "cuda"}]),
    "no arguments": lambda g: node(g, "relu.default").update(args=[]),
    "string": lambda g: node(g, "relu.default").update(args=["'); exec('1"]),
    "tensor": lambda g: node(g, "get_attr").update(tensor='a"); exec("1'),
    "attribute": lambda g: node(g, "get_attr").update(tensor="__class__"),
    "negative": lambda g: node(g, "get_attr").update(shape=[-1]),
    "big": lambda g: node(g, "get_attr").update(shape=[2**20, 2**20]),
    "type": lambda g: node(g, "get_attr").update(dtype="Storage"),
    "big result": lambda g: node(g, "relu.default").update(
        target="expand.default", args=[node(g, "relu.default")["args"][0], [2**30, 8, 2**20, 8]]
    ),
    "two inputs": lambda g: g["nodes"].insert(
        1, {"name": "y", "op": "placeholder", "shape": [3, 8, 8]}
    ),
    "no output": lambda g: g["nodes"].pop(),
    "deep": lambda g: node(g, "relu.default").update(args=[json.loads("[" * 90 + "]" * 90)]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_graph_is_refused_in_one_line(name: str) -> None:
    graph = copy.deepcopy(domain_net(Plain()).graph)
    HOSTILE[name](graph)
    with pytest.raises(CheckpointError, match=r"^graph.json: ") as caught:
        rebuild_network(ANY, (8, 8), [2, 3], graph, "graph.json")
    assert "\n" not in str(caught.value)


def test_a_name_that_no_file_could_hold_is_refused_before_training() -> None:
    class Odd(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.parts = nn.ModuleDict({"a#b": nn.Conv2d(3, 6, 3, padding=1, bias=False)})

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bn1(self.parts["a#b"](x)).relu()
            return self.bn2(self.conv2(x)).relu().mean((2, 3))

    with pytest.raises(UnsupportedGraphError, match="kept in a checkpoint: name its module with"):
        DomainNet(trace(Odd(), 8, 8), [2])


@pytest.mark.parametrize(
    ("name", "depth", "said"),
    [
        ("a" * 250, 1, "its module's name has 250 characters, give it at most 200"),
        ("a" * 199, 6, "its name has 1206 characters, give its modules shorter ones"),
        ("a", 40, "it lies in 40 modules, nest at most 30"),
    ],
)
def test_a_name_that_is_too_long_is_told_as_that(name: str, depth: int, said: str) -> None:
    """It was told to have other characters, or to be a fault of prunion's."""

    class Deep(Plain):
        def __init__(self) -> None:
            super().__init__()
            deep: nn.Module = nn.Conv2d(3, 6, 3, padding=1, bias=False)
            for _ in range(depth - 1):
                deep = nn.Sequential(OrderedDict({name: deep}))
            self.add_module(name, deep)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bn1(self.get_submodule(name)(x)).relu()
            return self.bn2(self.conv2(x)).relu().mean((2, 3))

    with pytest.raises(UnsupportedGraphError, match=f"kept in a checkpoint: {said}"):
        DomainNet(trace(Deep(), 8, 8), [2])


def test_a_map_of_any_size_is_measured_before_it_is_made() -> None:
    graph = json.loads(json.dumps(domain_net(Positions()).graph))
    (maker,) = (n for n in graph["nodes"] if n.get("target") == "zeros.default")
    maker["args"][0] = [10**6, 10**6, 8, 8]
    with pytest.raises(CheckpointError, match="which is too big"):
        rebuild_network(ANY, (8, 8), [2, 3], graph, "graph.json")


class Masked(Plain):
    """Channels by a mask, whose values a graph does not hold."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        return x[:, torch.tensor([True, False] * 4)].mean((2, 3))


def test_what_could_not_be_read_back_is_refused_by_its_node_before_there_is_a_file() -> None:
    """There is no folder that could be copied again."""
    net = domain_net(Masked())
    with pytest.raises(UnsupportedGraphError, match=r"node index: read back .*: give the numbers"):
        check_rebuilt(net, ANY, (8, 8))


class Filtered(Plain):
    """GFNet's: a learned filter of complex numbers over frequencies."""

    def __init__(self) -> None:
        super().__init__()
        self.filter = nn.Parameter(torch.randn(6, 8, 5, 2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = torch.fft.irfft2(torch.fft.rfft2(x) * torch.view_as_complex(self.filter), s=(8, 8))
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


class Bytes(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("places", torch.ones(1, 6, 1, 1, dtype=torch.int16))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu() * self.get_buffer("places")
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (Filtered, "node mul: .*view_as_complex.*complex64.*real numbers.*[[]backbone[]] cut"),
        (Bytes, "node mul: it reads the tensor 'places', whose int16 .*int32 or int64"),
    ],
)
def test_numbers_of_no_file_are_refused_by_their_node(model: type[nn.Module], told: str) -> None:
    with pytest.raises(UnsupportedGraphError, match=told):
        domain_net(model())

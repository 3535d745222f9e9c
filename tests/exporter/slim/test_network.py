"""Masked = sliced = ONNX, for every domain and in one mixed batch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from prunion.exporter.bundle import graph_trunk_hash
from prunion.exporter.bundle.packs import trunk_hash
from prunion.exporter.graph import onnx_graph, verify_export
from prunion.exporter.slim import slim_network
from prunion.runtime.errors import VerificationError
from prunion.trainer.network import DomainNet
from tests.support.mixing import KINDS, mix
from tests.support.networks.small import Depthwise, Plain, Residual, SqueezeExcite, domain_net


class Grouped(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=False)


class Concat(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.conv2, self.bn2 = nn.Conv2d(9, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.cat([x, self.bn1(self.conv1(x)).relu()], 1)
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


class NoNorm(Plain):
    """Biases and no BatchNorm, a hidden linear layer behind a flattened map (VGG's shape)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, padding=1)
        self.hidden = nn.Linear(8 * 16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.max_pool2d(self.conv1(x).relu(), 2)
        return self.hidden(self.conv2(x).relu().flatten(1)).relu()


class PreActivation(Plain):
    """The shortcut's convolution reads the residual stream before BatchNorm gates it."""

    def __init__(self) -> None:
        super().__init__()
        self.shortcut = nn.Conv2d(6, 8, 1, bias=False)
        self.bn1, self.bn2 = nn.BatchNorm2d(6), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x)
        x = self.shortcut(x) + self.conv2(self.bn1(x).relu())
        return self.bn2(x).relu().mean((2, 3))


class Shuffle(Plain):
    """Two groups of channels interleaved."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = x.view(x.shape[0], 2, 3, 8, 8).transpose(1, 2).contiguous().view(x.shape[0], 6, 8, 8)
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


class Split(Plain):
    """Half of the channels pass by; a gate is computed from [N, C]."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2, self.bn2 = nn.Conv2d(3, 5, 3, padding=1, bias=False), nn.BatchNorm2d(5)
        self.gate = nn.Linear(6, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = x * self.gate(x.mean((2, 3))).sigmoid().view(x.shape[0], 6, 1, 1)
        a, b = x.chunk(2, 1)
        return torch.cat([a[:, 1:], self.bn2(self.conv2(b)).relu()], 1).mean((2, 3))


class ZeroPad(Plain):
    """A shortcut that halves the map and adds zero channels (CIFAR's ResNets)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(x))[:, :, ::2, ::2]
        x = nn.functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 1, 1))
        return (x + y).relu().mean((2, 3))


class ZeroConcat(Plain):
    """The same made by a concatenation with a product with zero (the papers' ResNet-26)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2, self.bn2 = nn.Conv2d(6, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        y = self.bn2(self.conv2(x))
        return (torch.cat([x, x * 0], 1) + y).relu().mean((2, 3))


MODELS = [Plain, Residual, Depthwise, SqueezeExcite, Grouped, Concat, NoNorm, PreActivation]
MODELS += [Shuffle, Split, ZeroPad, ZeroConcat]


def switch_off(net: DomainNet, seed: int = 0) -> DomainNet:
    """Random switches; about a third of the units used by nobody."""
    generator = torch.Generator().manual_seed(seed)
    domains, units = net.switches.shape
    alive = torch.rand(units, generator=generator) < 0.67
    on = torch.rand(domains, units, generator=generator) < 0.8
    on[0] |= ~on.any(0)  # however many domains there are, the union is the same
    net.switches.copy_(on & alive)
    return net


@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_that_mixes_the_images_of_a_batch_is_not_exported(
    kind: str, tmp_path: Path
) -> None:
    net = switch_off(domain_net(Plain(), (3, 5, 2)))
    model = onnx_graph(slim_network(net), 8, 8)
    mix(model, kind)
    onnx.save(model, tmp_path / "model.onnx")
    images = torch.randn(6, 3, 8, 8)
    with pytest.raises(VerificationError, match="ONNX Runtime differs from the trained network"):
        verify_export(net, slim_network(net), tmp_path / "model.onnx", images, ["a", "b", "c"])


@pytest.mark.parametrize("model", MODELS)
def test_three_forms_agree(model: type[nn.Module], tmp_path: Path) -> None:
    net = switch_off(domain_net(model(), (3, 5, 2)))
    slim = slim_network(net)
    path = tmp_path / "model.onnx"
    onnx.save(onnx_graph(slim, 8, 8), path)
    images = torch.randn(9, 3, 8, 8)
    agreement = verify_export(net, slim, path, images, ["a", "b", "c"])
    assert agreement.worst < 1e-5
    order = [[e.layer, e.kind, e.offset, e.size] for e in slim.entries]
    assert graph_trunk_hash(onnx.load(path), order) == trunk_hash(slim)
    alive = (net.switches > 0).any(0).numpy()
    kept = net.units.table.params(alive)
    assert kept < net.units.table.params(alive | True)
    assert sum(p.numel() for p in slim.trunk.parameters() if p.dim() > 1) == kept


def test_dead_channels_are_gone_and_live_ones_are_needed() -> None:
    """Removing any one more unit would change what some domain answers."""
    torch.manual_seed(0)  # drawn otherwise, a domain may not need a unit that is its alone
    net = switch_off(domain_net(Residual(), (3, 4)), seed=4)
    slim, images = slim_network(net), torch.randn(64, 3, 8, 8)
    domains = torch.arange(64) % 2
    assert slim.table.count == int((net.switches > 0).any(0).sum())
    with torch.no_grad():
        reference = net.logits(images, domains)
        for unit in torch.nonzero((net.switches > 0).any(0))[:, 0]:
            kept = net.switches.clone()
            net.switches[:, unit] = 0
            changed = net.logits(images, domains)
            net.switches.copy_(kept)
            finite = torch.isfinite(reference)
            assert not torch.allclose(changed[finite], reference[finite], atol=1e-7)


def test_the_graph_takes_a_taller_bank_and_more_classes(tmp_path: Path) -> None:
    import onnxruntime

    net = switch_off(domain_net(Residual(), (3, 5)))
    slim = slim_network(net)
    path = tmp_path / "model.onnx"
    onnx.save(onnx_graph(slim, 8, 8), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    image = torch.randn(2, 3, 8, 8).numpy()
    plain = session.run(["logits"], {"image": image, "domain": np.array([1, 1])})[0]
    bank = np.concatenate([slim.bank.numpy(), slim.bank[1:].numpy()])
    weight = np.pad(slim.head_weight.numpy(), ((0, 1), (0, 0), (0, 2)))
    weight[2, :, :5] = slim.head_weight[1].numpy()
    bias = np.full((3, 7), -np.inf, np.float32)
    bias[:2, :5], bias[2, :5] = slim.head_bias.numpy(), slim.head_bias[1].numpy()
    tables = {"bank": bank, "head_weight": weight, "head_bias": bias}
    taller = session.run(["logits"], {"image": image, "domain": np.array([2, 1]), **tables})[0]
    np.testing.assert_allclose(taller[:, :5], plain, rtol=1e-5, atol=1e-6)
    assert np.isneginf(taller[:, 5:]).all()


def test_one_domain_and_one_class_export_too(tmp_path: Path) -> None:
    net = switch_off(domain_net(Plain(), (1,)))
    slim = slim_network(net)
    path = tmp_path / "model.onnx"
    onnx.save(onnx_graph(slim, 8, 8), path)
    assert verify_export(net, slim, path, torch.randn(4, 3, 8, 8), ["only"]).worst < 1e-5


def test_a_wrong_graph_is_caught(tmp_path: Path) -> None:
    net = switch_off(domain_net(Plain(), (3, 4)))
    slim = slim_network(net)
    path = tmp_path / "model.onnx"
    onnx.save(onnx_graph(slim, 8, 8), path)
    slim.bank[1, 0] += 1.0
    with pytest.raises(VerificationError, match="domain b: the sliced network differs"):
        verify_export(net, slim, path, torch.randn(4, 3, 8, 8), ["a", "b"])


def test_a_reshape_that_joins_channels_ties_them() -> None:
    class Interleave(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bn1(self.conv1(x)).relu()
            x = x.reshape(x.shape[0], 24, 16)  # four parts of each channel
            y = self.bn2(self.conv2(x.reshape(x.shape[0], 6, 8, 8))).relu()
            y = y.reshape(y.shape[0], 4, 128).mean(2)  # two channels in each
            return torch.cat([x.mean(2), y], 1)

    net = switch_off(domain_net(Interleave()))
    made = net.units.table.slots["conv2.weight", 0].tolist()
    assert made[::2] == made[1::2] and len(set(made)) == 4
    slim, images, domains = slim_network(net), torch.randn(4, 3, 8, 8), torch.arange(4) % 2
    assert len(slim.trunk.get_parameter("conv1.weight")) < 6
    with torch.no_grad():
        expected, got = net.logits(images, domains), slim.logits(images, domains)
    own = torch.isfinite(expected)
    assert torch.allclose(expected[own], got[own], atol=1e-5)


@pytest.mark.parametrize(
    "model",
    [Shuffle, *(pytest.param(x, marks=pytest.mark.thorough) for x in (Split, ZeroPad))],
)
def test_channels_are_gathered_along_an_axis_counted_from_the_end(model: type[nn.Module]) -> None:
    """Along axis 1 OpenVINO folds a reordering of all channels into the wrong weights."""
    graph = onnx_graph(slim_network(domain_net(model(), (3, 4))), 8, 8).graph
    tables = ("bank", "head_weight", "head_bias")
    picks = [n for n in graph.node if n.op_type == "Gather" and n.input[0] not in tables]
    axes = [onnx.helper.get_node_attr_value(node, "axis") for node in picks]
    assert axes == ([-3] if model is Shuffle else [])


class VectorBesideZeros(Plain):
    """Zeros that are made of a vector, which has no positions behind its channels."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu())).relu()
        y = self.fc(x.mean((2, 3)))
        return torch.cat([y, y * 0], 1)


def test_zeros_made_of_a_vector_are_cut_apart_from_it() -> None:
    net = domain_net(VectorBesideZeros(), (3, 4))
    units = net.units.feature_units
    net.switches[:, units[:3]] = 0  # more zeros are left than channels that they are made of
    slim, images = slim_network(net), torch.randn(3, 3, 8, 8)
    domains = torch.tensor([0, 1, 0])
    with torch.no_grad():
        torch.testing.assert_close(slim.logits(images, domains), net.logits(images, domains))

"""Masked = sliced = ONNX on networks and switches nobody thought of."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from prunion.exporter.graph import onnx_graph, verify_export
from prunion.exporter.slim import slim_network
from prunion.runtime.backends import SessionOptions, make_ort_session
from prunion.trainer.backbone import trace
from prunion.trainer.network import DomainNet
from tests.exporter.slim import test_network as small
from tests.support.networks.random_nets import SIDE, RandomNet, networks

pytestmark = pytest.mark.thorough

CLASSES = (3, 5, 2)
DOMAINS = torch.tensor([0, 1, 2, 0, 2, 1, 1])
DENSITIES = (0.85, 0.5, 0.2)
ROUND_OFF = 2e-5
REDRAWN = 20  # further switches for every exported network
QUICK = settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
)


def masked(model: nn.Module, seed: int) -> DomainNet:
    """Per-domain statistics from noise, so that activations neither die out nor explode."""
    torch.manual_seed(seed)
    net = DomainNet(trace(model, SIDE, SIDE), CLASSES)
    with torch.no_grad():
        for norm in net.norms.values():
            norm.weight.copy_(1 + 0.3 * torch.randn_like(norm.weight))
            norm.bias.copy_(0.5 * torch.randn_like(norm.bias))
            norm.momentum = 1.0
        net.train()
        net(torch.randn(12, 3, SIDE, SIDE), [(domain, 4) for domain in range(3)])
    return net.eval()


def switch(net: DomainNet, density: float) -> None:
    """Random switches; a width may lose every channel only where nothing else is possible."""
    domains, units = net.switches.shape
    alive = torch.rand(units) < density
    for members in map(torch.from_numpy, net.units.table.widths):
        alive[members[0]] |= ~alive[members].any()
    on = torch.rand(domains, units) < 0.8
    on[0] |= ~on.any(0)
    net.switches.copy_(on & alive)


def difference(expected: torch.Tensor, got: torch.Tensor) -> float:
    own = torch.isfinite(expected)
    assert torch.equal(own, torch.isfinite(got))
    error = (expected - got)[own].abs().max() / expected[own].abs().max().clamp_min(1e-6)
    return float(error)


def check_slices(model: RandomNet, seed: int) -> None:
    """At three densities: masked = sliced, gates behind activations = gates inside BatchNorm."""
    net = masked(model, seed)
    images = torch.randn(len(DOMAINS), 3, SIDE, SIDE)
    for density in DENSITIES:
        switch(net, density)
        slim = slim_network(net)
        with torch.no_grad():
            expected = net.logits(images, DOMAINS)
            assert difference(expected, slim.logits(images, DOMAINS)) < ROUND_OFF
        learning = net.features(images, DOMAINS, net.switches.clone().requires_grad_())[0]
        fixed = net.features(images, DOMAINS)[0]
        assert difference(fixed.detach(), learning.detach()) < ROUND_OFF
        alive = (net.switches > 0).any(0).numpy()
        layers = {layer.weight for layer in net.units.table.layers}
        held = sum(p.numel() for n, p in slim.trunk.named_parameters() if n in layers)
        assert held == net.units.table.params(alive)


@QUICK
@given(networks(), st.integers(0, 2**31))
def test_random_networks_are_sliced_exactly(model: RandomNet, seed: int) -> None:
    """45 cases: 15 networks at three densities."""
    check_slices(model, seed)


@pytest.mark.slow
@settings(QUICK, max_examples=1000, derandomize=False, phases=[Phase.generate])
@given(networks(most_steps=12), st.integers(0, 2**31))
def test_thousands_of_random_networks_are_sliced_exactly(model: RandomNet, seed: int) -> None:
    check_slices(model, seed)


def check_onnx(model: RandomNet, seed: int, folder: Path) -> None:
    net = masked(model, seed)
    switch(net, 0.6)
    slim = slim_network(net)
    path = folder / "model.onnx"
    graph = onnx_graph(slim, SIDE, SIDE)
    onnx.save(graph, path)
    images = torch.randn(2 * len(CLASSES), 3, SIDE, SIDE)
    assert verify_export(net, slim, path, images, ["a", "b", "c"]).worst < 1e-4
    layers = {layer.weight for layer in net.units.table.layers}
    held = sum(int(np.prod(i.dims)) for i in graph.graph.initializer if i.name in layers)
    assert held == net.units.table.params((net.switches > 0).any(0).numpy())
    check_tables(net, path)


def check_tables(net: DomainNet, path: Path) -> None:
    """Other switches within the union: masked = sliced = the same ONNX graph, tables fed."""
    session = make_ort_session(path, SessionOptions("cpu", 1), needs={"image", "domain"})
    union = (net.switches > 0).any(0)
    for _ in range(REDRAWN):
        net.switches.copy_((torch.rand_like(net.switches) < 0.7) & union)
        slim = slim_network(net, union.numpy())
        images = torch.randn(len(DOMAINS), 3, SIDE, SIDE)
        feeds = {"image": images, "domain": DOMAINS, **dict(slim.named_buffers(recurse=False))}
        with torch.no_grad():
            expected = net.logits(images, DOMAINS)
            assert difference(expected, slim.logits(images, DOMAINS)) < ROUND_OFF
        (logits,) = session.run(["logits"], {name: x.numpy() for name, x in feeds.items()})
        assert difference(expected, torch.from_numpy(logits)) < 1e-4


@settings(QUICK, max_examples=2)
@given(model=networks(), seed=st.integers(0, 2**31))
def test_random_networks_are_exported_exactly(
    tmp_path_factory: pytest.TempPathFactory, model: RandomNet, seed: int
) -> None:
    check_onnx(model, seed, tmp_path_factory.mktemp("onnx"))


@pytest.mark.slow
@settings(QUICK, max_examples=150, derandomize=False, phases=[Phase.generate])
@given(model=networks(most_steps=12), seed=st.integers(0, 2**31))
def test_hundreds_of_random_networks_are_exported_exactly(
    tmp_path_factory: pytest.TempPathFactory, model: RandomNet, seed: int
) -> None:
    """3,150 cases: 150 networks, each with 21 draws of switches."""
    check_onnx(model, seed, tmp_path_factory.mktemp("onnx"))


@pytest.mark.parametrize("model", small.MODELS)
def test_no_dead_channel_is_left(model: type[nn.Module]) -> None:
    """Slicing any one unit more, whichever, changes what some domain answers."""
    made = model()
    with torch.no_grad():
        for layer in made.modules():  # no channel may be on ReLU's dead side for every image
            if isinstance(layer, nn.Conv2d | nn.Linear) and layer.bias is not None:
                layer.bias.fill_(0.5)
    net = small.switch_off(masked(made, 0))
    images = torch.randn(32, 3, SIDE, SIDE)
    domains = torch.arange(32) % 3
    with torch.no_grad():
        expected = slim_network(net).logits(images, domains)
        for unit in torch.nonzero((net.switches > 0).any(0))[:, 0]:
            before = net.switches[:, unit].clone()
            net.switches[:, unit] = 0
            fewer = slim_network(net)
            net.switches[:, unit] = before
            assert difference(expected, fewer.logits(images, domains)) > ROUND_OFF, int(unit)

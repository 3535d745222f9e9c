"""A hundred networks as users write them: exact, or refused before training; none wrong.

Cut at random, each must answer as its masked network does: sliced in torch, exported to ONNX, and
pinned to one domain's own channels.
"""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch.nn import functional as F

from prunion.exporter.bundle.packs import domain_pack, graph_trunk_hash, trunk_hash
from prunion.exporter.counts import check_counts
from prunion.exporter.graph import onnx_graph, verify_export
from prunion.exporter.graph.probe import Probe, open_graph, run_graph
from prunion.exporter.slim import fold_domain, keep_rows, slim_network
from prunion.runtime.errors import UnsupportedGraphError
from prunion.runtime.graph.pin import pin_pack
from prunion.trainer.config import BackboneConfig
from prunion.trainer.network import DomainNet, rebuild_network
from tests.exporter.slim.test_random_networks import (
    CLASSES,
    DOMAINS,
    ROUND_OFF,
    difference,
    masked,
    switch,
)
from tests.exporter.slim.user_layers import NETWORKS as LAYERS
from tests.exporter.slim.user_networks import EXACT, WHOLE, net
from tests.exporter.slim.user_operations import OPERATIONS
from tests.support.networks.counting import macs_by_running
from tests.support.networks.random_nets import SIDE

NETWORKS = LAYERS | OPERATIONS
REFUSED = [name for name, (_, outcome) in NETWORKS.items() if outcome not in (EXACT, WHOLE)]
ACCEPTED = [name for name in NETWORKS if name not in REFUSED]
QUICK = [ACCEPTED[0], "tokens", "PReLU, a slope each", "GroupNorm"]  # of the exported ones
REBUILT = ACCEPTED[::3]
FOLDED = ["BatchNorm over tokens", "BatchNorm over as many tokens", "tokens", *ACCEPTED[::16]]


def quick(names: list[str], thorough: Sequence[str] = ()) -> list[Any]:
    """All accepted ones; those not named are slow, or thorough."""
    marks = {n: pytest.mark.thorough if n in thorough else pytest.mark.slow for n in ACCEPTED}
    return [n if n in names else pytest.param(n, marks=marks[n]) for n in ACCEPTED]


@functools.cache
def traced(name: str) -> DomainNet:
    return masked(NETWORKS[name][0](), 0)


def network(name: str) -> DomainNet:
    """Traced once for all tests, which change nothing but its switches."""
    net = traced(name)
    net.switches.fill_(1)
    torch.manual_seed(0)
    return net


def test_there_are_a_hundred() -> None:
    assert len(NETWORKS) >= 100


@pytest.mark.parametrize("name", ACCEPTED)
def test_sliced_is_masked(name: str) -> None:
    outcome, net = NETWORKS[name][1], network(name)
    assert (outcome == WHOLE) == bool(net.units.whole), net.units.whole
    images = torch.randn(len(DOMAINS), 3, SIDE, SIDE)
    for density in (0.7, 0.4):
        switch(net, density)
        slim = slim_network(net)
        with torch.no_grad():
            expected = net.logits(images, DOMAINS)
            assert difference(expected, slim.logits(images, DOMAINS)) < ROUND_OFF
            learning = net.features(images, DOMAINS, net.switches.clone().requires_grad_())[0]
            fixed = net.features(images, DOMAINS)[0]
        assert difference(fixed, learning) < ROUND_OFF
    assert (~(net.switches > 0).any(0)).any()  # something was cut


@pytest.mark.parametrize("name", ACCEPTED)
def test_macs_are_those_of_one_image(name: str) -> None:
    net = network(name)
    every = np.ones(net.units.table.count, dtype=bool)
    assert net.units.table.macs(every) == macs_by_running(net, SIDE)


@pytest.mark.parametrize("name", quick(REBUILT))
def test_rebuilt_from_its_graph_it_is_the_same(name: str) -> None:
    net = network(name)
    config = BackboneConfig("written:net", "python")
    graph = json.loads(json.dumps(net.graph))
    again = rebuild_network(config, (SIDE, SIDE), net.classes, graph, "graph.json")
    again.load_state_dict(net.state_dict())
    again.eval()
    assert again.units.table.to_json() == net.units.table.to_json()
    images = torch.randn(len(DOMAINS), 3, SIDE, SIDE)
    for each in (net, again):
        torch.manual_seed(0)
        switch(each, 0.5)
    with torch.no_grad():
        assert torch.equal(net.logits(images, DOMAINS), again.logits(images, DOMAINS))


@pytest.mark.parametrize("name", quick(FOLDED))
def test_folded_to_one_domain_is_masked(name: str) -> None:
    net = network(name)
    switch(net, 0.5)
    one = copy.deepcopy(net)
    keep_rows(one, torch.tensor([1]))
    images = torch.randn(4, 3, SIDE, SIDE)
    with torch.no_grad():
        expected = net.logits(images, torch.ones(4, dtype=torch.int64))[:, : CLASSES[1]]
        # Units that no other domain uses leave as well, but never a layer's last.
        alive = one.units.table.round_up((one.switches > 0).any(0).numpy(), 1)
        assert difference(expected, fold_domain(slim_network(one, alive))(images)) < ROUND_OFF


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_training(name: str) -> None:
    make, reason = NETWORKS[name]
    with pytest.raises(UnsupportedGraphError, match=reason) as caught:
        masked(make(), 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", quick(QUICK, ACCEPTED[::32]))
def test_exported_is_masked(name: str, tmp_path: Path) -> None:
    net = network(name)
    switch(net, 0.5)
    slim = slim_network(net)
    path = tmp_path / "model.onnx"
    model = onnx_graph(slim, SIDE, SIDE)
    onnx.save(model, path)
    # `verify` finds every layer in the graph, and the trunk's hash again.
    assert {x.weight for x in slim.table.layers} <= {x.name for x in model.graph.initializer}
    order = [[e.layer, e.kind, e.offset, e.size] for e in slim.entries]
    assert graph_trunk_hash(model, order) == trunk_hash(slim)
    images = torch.randn(6, 3, SIDE, SIDE)
    assert verify_export(net, slim, path, images, ["a", "b", "c"]).worst < ROUND_OFF
    check_counts(onnx.load(path), slim.table)
    check_pinned(net, path, images)


def check_pinned(net: DomainNet, path: Path, images: torch.Tensor) -> None:
    """Pinned to a domain, and cut to what that domain uses where the runtime can."""
    slim = slim_network(net)
    digest = trunk_hash(slim)
    for row, classes in enumerate(CLASSES):
        facts = {"name": f"d{row}", "classes": [str(i) for i in range(classes)]}
        pack = domain_pack(slim, row, facts, digest)
        with torch.no_grad():
            expected = net.logits(images, torch.full((len(images),), row))[:, :classes]
        own = slim.table.round_up(slim.used[row], 1)
        for table in (None, slim.table):
            try:
                graph = pin_pack(path, pack, table, own if table else None)
            except UnsupportedGraphError:
                continue
            got = run_graph(
                open_graph(graph), Probe(images.numpy(), images.numpy(), images.numpy())
            )
            assert difference(expected, torch.from_numpy(got)) < ROUND_OFF


def test_channels_that_lie_last_are_pooled_by_a_mean() -> None:
    """Not gathered from one long row, which nobody can slice."""
    make = net(
        lambda m, x: F.adaptive_avg_pool2d(
            m.norm(m.a(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2), 1
        ).flatten(1),
        end=False,
        a=lambda: torch.nn.Conv2d(8, 8, 1),
        norm=lambda: torch.nn.LayerNorm(8),
    )
    model = onnx_graph(slim_network(masked(make(), 0)), SIDE, SIDE).graph
    made = {output: node for node in model.node for output in node.output}
    pooled = [made[node.input[0]] for node in model.node if node.op_type == "ReduceMean"]
    assert [node.op_type for node in pooled] == ["Transpose"]
    assert not [n for n in model.node if n.op_type == "Gather" and n.input[0] in made]

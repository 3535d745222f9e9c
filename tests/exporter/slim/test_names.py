"""A user's own names: those that prunion or torch's exporter gives to something else, too."""

from __future__ import annotations

import json
from pathlib import Path

import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunion.exporter.bundle.packs import graph_trunk_hash, trunk_hash
from prunion.exporter.graph import onnx_graph, verify_export
from prunion.exporter.slim import slim_network
from prunion.runtime.errors import ConfigError
from prunion.runtime.graph import TABLE_INPUTS
from prunion.trainer.config import BackboneConfig
from prunion.trainer.network import DomainNet, build_network, rebuild_network
from tests.exporter.slim.test_random_networks import (
    CLASSES,
    DOMAINS,
    ROUND_OFF,
    difference,
    switch,
)
from tests.support.networks.random_nets import SIDE

NUMBERS = ("routing", "affine", "beside", "relu", "conv2d", "image", "domain", "logits", "root")


class Named(nn.Module):
    """Batch norms, convolutions, numbers and statistics under names that are taken."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.rand(1, 3, 1, 1))
        self.register_buffer("std", torch.rand(1, 3, 1, 1) + 0.5)
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.wide = nn.Sequential(nn.Conv2d(8, 12, 1), nn.BatchNorm2d(12), nn.ReLU())
        self.back = nn.Conv2d(12, 8, 1)
        self.norms = nn.ModuleList([nn.BatchNorm2d(8)])
        self.gates = nn.ModuleList([nn.Conv2d(8, 8, 1)])
        self.series = nn.Sequential(nn.Conv2d(8, 8, 1))
        self.pixel_norm = nn.BatchNorm2d(8)
        self.paths = nn.ModuleDict({"a/b": nn.BatchNorm2d(8), "a_b": nn.BatchNorm2d(8)})
        for name in (*NUMBERS, *TABLE_INPUTS):
            setattr(self, name, nn.Parameter(torch.rand(8, 1, 1) + 0.5))
        self.register_buffer("running_mean", torch.zeros(8))
        self.register_buffer("running_var", torch.ones(8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.stem((x - self.mean) / self.std)
        x = self.norms[0](self.back(self.wide(x))).relu()
        x = x * self.gates[0](x).sigmoid()
        x = self.pixel_norm(self.series(x)).relu()
        x = self.paths["a_b"](self.paths["a/b"](x)).relu()
        for name in (*NUMBERS, *TABLE_INPUTS):
            x = x * getattr(self, name)
        # The module's own, with what is added to the variance twice: two norms.
        for eps in (1e-5, 0.5):
            x = F.batch_norm(x, self.running_mean, self.running_var, eps=eps).relu()
        return x.mean((2, 3))


def made(keep: tuple[str, ...] = ()) -> DomainNet:
    torch.manual_seed(0)
    config = BackboneConfig("written:net", "python", keep=keep)
    return build_network(config, (SIDE, SIDE), CLASSES, model=Named())


def test_no_name_of_a_users_is_taken_for_one_of_ours(tmp_path: Path) -> None:
    net = made()
    assert len(net.norms) == 7
    config, graph = BackboneConfig("written:net", "python"), json.loads(json.dumps(net.graph))
    again = rebuild_network(config, (SIDE, SIDE), net.classes, graph, "graph.json")
    again.load_state_dict(net.state_dict())
    net.train()
    net(torch.randn(12, 3, SIDE, SIDE), [(domain, 4) for domain in range(3)])
    again.load_state_dict(net.eval().state_dict())
    switch(net, 0.6)
    again.switches.copy_(net.switches)
    slim, path = slim_network(net), tmp_path / "model.onnx"
    images = torch.randn(len(DOMAINS), 3, SIDE, SIDE)
    with torch.no_grad():
        expected = net.logits(images, DOMAINS)
        assert torch.equal(expected, again.eval().logits(images, DOMAINS))
        assert difference(expected, slim.logits(images, DOMAINS)) < ROUND_OFF
    model = onnx_graph(slim, SIDE, SIDE)
    order = [[e.layer, e.kind, e.offset, e.size] for e in slim.entries]
    assert graph_trunk_hash(model, order) == trunk_hash(slim)
    onnx.save(model, path)
    assert verify_export(net, slim, path, images, ["a", "b", "c"]).worst < ROUND_OFF


def test_a_layer_is_kept_by_the_name_that_its_author_gave_it() -> None:
    kept = made(keep=("gates.0", "ser*")).units.kept
    assert kept == {"gates_.0.weight", "series_.0.weight"}
    with pytest.raises(ConfigError, match=r"keep: 'gates.1' is no layer"):
        made(keep=("gates.1",))

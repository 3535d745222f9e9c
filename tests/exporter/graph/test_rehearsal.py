"""A random cut is exported before a network is trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from prunion.exporter.graph import rehearse_export
from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone import paper_resnets
from prunion.trainer.backbone.tracing import rewrites
from prunion.trainer.channels import walk
from prunion.trainer.config import BackboneConfig, load_config
from prunion.trainer.network import DomainNet, build_network
from prunion.trainer.processes import ALONE
from prunion.trainer.run import train_run
from prunion.trainer.run.start import begin
from tests.support.networks.small import Plain, SqueezeExcite, domain_net
from tests.support.tiny_run import tiny_run


class Softplus(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.softplus(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


class Bessel(Plain):
    """An operation that ONNX has no form of."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.special.bessel_j0(self.bn1(self.conv1(x)))
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


def test_a_network_that_can_be_exported_is_left_as_it_was() -> None:
    net = domain_net(SqueezeExcite(), (3, 4, 2))
    before = {name: value.clone() for name, value in net.state_dict().items()}
    random = torch.get_rng_state()
    rehearse_export(net, 8, 8)
    assert torch.equal(torch.get_rng_state(), random)
    after = net.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("blocks", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_a_cut_that_lays_a_node_out_anew_is_exact(
    blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The papers' ResNet joins zeros to its shortcut, of which as many stay as the sum needs.

    It does so in the first block of a stage, and has four.
    """
    monkeypatch.setattr(paper_resnets, "BLOCKS", blocks)
    backbone = BackboneConfig("resnet26", "prunion", weights="none")
    rehearse_export(build_network(backbone, (32, 32), [2, 3]), 32, 32)


def test_a_wrong_cut_is_refused_by_its_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """Softplus taken for an activation that keeps 0."""
    monkeypatch.setitem(walk.HANDLERS, "softplus", walk.elementwise)
    net = domain_net(Softplus(), (3, 4))
    with pytest.raises(UnsupportedGraphError, match="node conv2d_1: it differs") as caught:
        rehearse_export(net, 8, 8)
    assert '[backbone] keep = ["conv2"]' in str(caught.value) and "\n" not in str(caught.value)


class Context(Plain):
    """A context beside the map: two convolutions of one width, which the other's channels meet."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.context, self.conv2 = nn.Conv2d(16, 16, 1), nn.Conv2d(32, 8, 3, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        y = self.context(x.mean((2, 3), keepdim=True)).expand_as(x)
        return self.bn2(self.conv2(torch.cat([x, y], 1))).relu().mean((2, 3))


def test_widths_that_are_equal_by_luck_hide_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rounded to 16 both stay whole; without the rewriting one's size is the other's."""
    rehearse_export(domain_net(Context(), (3, 4)), 8, 8, 16)
    monkeypatch.setattr(rewrites, "OF_ANOTHER", {})
    with pytest.raises(UnsupportedGraphError, match="node expand_as: "):
        rehearse_export(domain_net(Context(), (3, 4)), 8, 8, 16)


def test_what_onnx_cannot_say_is_refused() -> None:
    told = r"cannot be exported, .*: node \w*bessel\w*: "
    with pytest.raises(UnsupportedGraphError, match=told) as caught:
        rehearse_export(domain_net(Bessel(), (3, 4)), 8, 8)
    assert "\n" not in str(caught.value)


def test_training_asks_before_its_first_step_and_not_again(tmp_path: Path) -> None:
    config = load_config(tiny_run(tmp_path, warmup=0, ramp=1, settle=0))
    asked: list[tuple[int, int, int, Sequence[str]]] = []

    def check(net: DomainNet, height: int, width: int, round_to: int, own: Sequence[str]) -> None:
        asked.append((height, width, round_to, own))
        raise UnsupportedGraphError("node x: no")

    with pytest.raises(UnsupportedGraphError, match="node x"):
        train_run(config, tmp_path / "out", check=check)
    assert not (tmp_path / "out").exists() and asked == [(16, 16, 8, [])]
    train_run(config, tmp_path / "out")
    train_run(config, tmp_path / "out", resume=True, check=check)
    assert len(asked) == 1


@pytest.mark.parametrize(
    ("train", "apart"),
    [
        ({"method": "finetune"}, True),
        ({"method": "series"}, False),  # folded: what is left of them is in tables
        ({"granularity": "slice"}, True),
        ({"adapter_rank": 2}, False),
    ],
)
def test_weights_that_domains_will_have_apart_are_looked_for_in_the_graph(
    tmp_path: Path, train: dict[str, Any], apart: bool
) -> None:
    """It was found only when a trained run was exported; adapters that all share are in tables."""
    config = load_config(tiny_run(tmp_path))
    config = replace(config, train=replace(config.train, **train))
    seen: list[tuple[DomainNet, Sequence[str]]] = []

    def check(net: DomainNet, height: int, width: int, round_to: int, own: Sequence[str]) -> None:
        seen.append((net, own))
        rehearse_export(net, height, width, round_to, own)
        assert net.adapter is None

    asked, _ = begin(config, tmp_path / "out", "cpu", ALONE, check=check)
    unasked, _ = begin(config, tmp_path / "out", "cpu", ALONE)
    for name, value in unasked.net.state_dict().items():
        assert torch.equal(value, asked.net.state_dict()[name]), name
    ((_, own),) = seen
    assert ("conv1.weight" in own) == apart
    assert bool(own) == apart


def test_a_weight_that_the_graph_does_not_hold_is_named() -> None:
    told = r"does not hold the weight 'left.weight' and 1 more, .* method without own weights"
    with pytest.raises(UnsupportedGraphError, match=told):
        rehearse_export(domain_net(Plain()), 8, 8, 1, ["conv1.weight", "left.weight", "x.bias"])


class ActivePlaces(Plain):
    """A softmax over the places where a channel is on: none are, where it is off."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        weights = x.masked_fill(x <= 0, -torch.inf).flatten(2).softmax(2).view_as(x)
        return self.bn2(self.conv2(x * weights * 64)).relu().mean((2, 3))


def test_answers_that_are_lost_with_a_channel_are_refused_by_their_node() -> None:
    """Finite with every channel on; nothing was compared then, and training met them."""
    net = domain_net(ActivePlaces(), (3, 4))
    with pytest.raises(UnsupportedGraphError, match=r"node softmax: .* not finite as soon") as told:
        rehearse_export(net, 8, 8)
    assert '[backbone] keep = ["conv1"]' in str(told.value) and "\n" not in str(told.value)


def test_answers_that_never_were_finite_are_passed_over_with_a_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    net = domain_net(Plain(), (3, 4))
    with torch.no_grad():
        net.trunk.get_parameter("conv1.weight").fill_(torch.nan)
    rehearse_export(net, 8, 8)
    (line,) = [r.getMessage() for r in caplog.records if "not compared" in r.getMessage()]
    assert "\n" not in line


class Scaled(Softplus):
    """The softplus behind a scale that begins at zero."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        y = nn.functional.softplus(x) * self.scale
        return self.bn2(self.conv2(x + y)).relu().mean((2, 3))


def test_a_wrong_cut_is_seen_behind_a_scale_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(walk.HANDLERS, "softplus", walk.elementwise)
    net = domain_net(Scaled(), (3, 4))
    with pytest.raises(UnsupportedGraphError, match="node conv2d_1: it differs"):
        rehearse_export(net, 8, 8)
    assert not net.trunk.get_parameter("root.scale").any()


class NoEps(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.bn2 = nn.BatchNorm2d(8, eps=0.0)


def test_a_batchnorm_that_torch_cannot_train_is_refused_by_its_node() -> None:
    with pytest.raises(UnsupportedGraphError, match=r"node batch_norm_1: .* bn2 has eps=0") as told:
        domain_net(NoEps())
    assert "eps > 0" in str(told.value) and "\n" not in str(told.value)


def test_what_torch_says_while_statistics_are_drawn_is_one_line() -> None:
    net = domain_net(Plain(), (3, 4))
    net.norms["bn1"].eps = 0.0
    with pytest.raises(UnsupportedGraphError, match="eps must be positive") as told:
        rehearse_export(net, 8, 8)
    assert "\n" not in str(told.value)

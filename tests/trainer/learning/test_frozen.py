"""What a network's owner froze (`requires_grad=False`) stays as it is, in every method."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunion.trainer.config import BackboneConfig, TrainConfig
from prunion.trainer.learning.optimiser import hold_trunk, make_optimiser, trunk_parameters
from prunion.trainer.network import DomainNet, adapt_network, build_network, rebuild_network
from tests.support.networks.small import Plain

HAND = BackboneConfig("tests:Owned", "python")
FROZEN = {"root.places", "root.blur", "constant_mul", "conv1.weight"}


class Owned(Plain):
    """A frozen stem, frozen places, a fixed blur, and a weight made of two frozen factors."""

    def __init__(self) -> None:
        super().__init__()
        self.places = nn.Parameter(torch.rand(1, 6, 8, 8), requires_grad=False)
        self.blur = nn.Parameter(torch.full((6, 1, 3, 3), 1 / 9), requires_grad=False)
        self.shift = nn.Parameter(torch.rand(6, 1, 1), requires_grad=False)
        self.factor = nn.Parameter(torch.rand(1, 1, 1), requires_grad=False)
        for part in (self.conv1, self.bn1):
            part.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu() + self.places + self.shift * self.factor
        x = F.conv2d(x, self.blur, padding=1, groups=6)
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


def moved(net: DomainNet, train: TrainConfig) -> set[str]:
    """The names of the trunk's tensors that three steps move."""
    optimiser = make_optimiser(train, net)
    hold_trunk(net, train, "settle")
    before = {name: value.detach().clone() for name, value in net.trunk.named_parameters()}
    net.train()
    for _ in range(3):
        optimiser.zero_grad()
        answers = net(torch.randn(8, 3, 8, 8), [(0, 4), (1, 4)])
        sum(answer.square().mean() for answer in answers).backward()
        optimiser.step()
    return {name for name, x in net.trunk.named_parameters() if not torch.equal(x, before[name])}


def own_norms(net: DomainNet) -> set[str]:
    return {name for name, _ in net.trunk.named_parameters() if name.startswith("norms.")}


@pytest.mark.parametrize("trunk_from", ["start", "settle"])
def test_what_is_frozen_moves_in_no_step_and_is_frozen_in_the_file_too(trunk_from: str) -> None:
    net = build_network(HAND, (8, 8), [3, 4], model=Owned())
    graph = json.loads(json.dumps(net.graph))
    again = rebuild_network(HAND, (8, 8), [3, 4], graph, "graph.json")
    again.load_state_dict(net.state_dict())
    train = TrainConfig(trunk="tuned", trunk_from=trunk_from)  # type: ignore[arg-type]
    for each in (net, again):
        names = {name for name, _ in each.trunk.named_parameters()}
        assert names >= FROZEN  # weights they are, and counted as such
        assert len(trunk_parameters(each)) == 1
        assert moved(each, train) == {"conv2.weight"} | own_norms(each)


@pytest.mark.parametrize("method", ["finetune", "piggyback", "lora"])
def test_no_method_gives_a_domain_its_own_of_what_is_frozen(method: str) -> None:
    net = build_network(HAND, (8, 8), [3, 4], model=Owned())
    adapt_network(net, TrainConfig(method=method))  # type: ignore[arg-type]
    assert net.adapter is not None
    assert set(net.adapter.names) == {"conv2.weight"}


def test_a_network_that_is_frozen_as_a_whole_learns_and_says_so(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = Owned().requires_grad_(False)
    net = build_network(HAND, (8, 8), [3, 4], model=model)
    assert "every parameter of the network has requires_grad=False" in caplog.text
    assert moved(net, TrainConfig(trunk="tuned")) >= FROZEN | {"conv2.weight"}
    assert not any(parameter.requires_grad for parameter in model.parameters())

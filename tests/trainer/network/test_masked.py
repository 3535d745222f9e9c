"""The masked network: routing, per-domain statistics and gates."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from prunion.trainer.backbone import trace
from prunion.trainer.config import DomainConfig, InputConfig
from prunion.trainer.data import open_domain
from prunion.trainer.network import evaluate
from tests.support.networks.small import (
    Depthwise,
    Plain,
    Residual,
    SqueezeExcite,
    domain_net,
    shuffle_norms,
)
from tests.support.tiny_run import write_domain


@pytest.mark.parametrize("model", [Plain, Residual, Depthwise, SqueezeExcite])
def test_with_every_switch_on_it_is_the_backbone(model: type[nn.Module]) -> None:
    from prunion.trainer.network import DomainNet

    backbone = model()
    image = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        expected = backbone.eval()(image)
        net = DomainNet(trace(backbone, 8, 8), (3, 5)).eval()
        features, _ = net.features(image, [(1, 4)])
    torch.testing.assert_close(features, expected)


@pytest.mark.parametrize("model", [Plain, Residual, Depthwise, SqueezeExcite])
def test_networks_of_the_tests_are_as_if_each_were_traced(model: type[nn.Module]) -> None:
    """`domain_net` traces each kind once: graph, weights and random numbers are the same."""
    from prunion.trainer.network import DomainNet

    domain_net(model())
    own = model()
    torch.manual_seed(0)
    expected = DomainNet(trace(copy.deepcopy(own), 8, 8), (3, 5))
    shuffle_norms(expected)
    net, state = domain_net(own), expected.state_dict()
    assert list(net.state_dict()) == list(state)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert (net.trunk.code, net.graph) == (expected.trunk.code, expected.graph)
    assert net.units.table.to_json() == expected.units.table.to_json()


def test_a_mixed_batch_answers_like_single_images() -> None:
    net = domain_net(Residual())
    net.switches.copy_(torch.rand_like(net.switches) < 0.7)
    image, domains = torch.randn(6, 3, 8, 8), torch.tensor([0, 1, 1, 0, 1, 0])
    with torch.no_grad():
        mixed = net.logits(image, domains)
        single = torch.cat([net.logits(image[i : i + 1], domains[i : i + 1]) for i in range(6)])
    torch.testing.assert_close(mixed, single)
    assert torch.isinf(mixed[0, 3:]).all()
    assert torch.isfinite(mixed[1]).all()


def test_evaluation_compiles_nothing(tmp_path: Path) -> None:
    """Its short last batches would make every graph after it one of any shape."""
    compiled: list[object] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]) -> object:
        compiled.append(graph)
        return graph.forward

    net = domain_net(Plain())
    net.trunk.compile(backend=backend)
    write_domain(tmp_path, ["red", "green", "blue"], 4, 0)
    train, test = ((str(tmp_path / part),) for part in ("train", "test"))
    domain = open_domain(DomainConfig("a", train=train, test=test), 0)
    evaluate(net, [domain], InputConfig((8, 8)), batch_size=5)
    assert not compiled
    net.train()
    net(torch.randn(8, 3, 8, 8), [(0, 4), (1, 4)], gated=False)
    assert len(compiled) == 1


def test_an_answer_that_is_not_finite_is_a_wrong_one(tmp_path: Path) -> None:
    """Whatever its class is: one of its classes is the first."""
    write_domain(tmp_path, ["red", "green", "blue"], 4, 0)
    train, test = ((str(tmp_path / part),) for part in ("train", "test"))
    domain = open_domain(DomainConfig("a", train=train, test=test), 0)
    for value in (float("nan"), float("inf")):
        net = domain_net(Plain())
        with torch.no_grad():
            net.heads[0].bias.fill_(value)
        assert evaluate(net, [domain], InputConfig((8, 8))) == {"a": 0.0}


def test_an_off_channel_is_zero_behind_its_gate_whatever_the_shift() -> None:
    net = domain_net(Plain())
    unit = int(net.units.table.slots["conv2.weight", 0][2])
    net.switches[:, unit] = 0
    features, _ = net.features(torch.randn(2, 3, 8, 8), [(0, 2)])
    assert not features[:, 2].any()
    assert features[:, 3].any()


def test_an_off_switch_still_gets_a_gradient() -> None:
    net = domain_net(Plain())
    switches = torch.zeros_like(net.switches)
    switches[:, ::2] = 1
    switches.requires_grad_()
    (logits,) = net(torch.randn(8, 3, 8, 8), [(0, 8)], switches)
    nn.functional.cross_entropy(logits, torch.arange(8) % 3).backward()
    assert switches.grad is not None
    off = switches.grad[0, 1::2]
    assert (off != 0).any()
    assert not switches.grad[1].any()  # the other domain took no part


def test_training_moves_only_the_statistics_of_the_domains_in_the_batch() -> None:
    net = domain_net(Plain()).train()
    before = {k: v.clone() for k, v in net.norms["bn1"].named_buffers()}
    net(torch.randn(8, 3, 8, 8), [(1, 8)])
    after = dict(net.norms["bn1"].named_buffers())
    assert torch.equal(after["running_mean"][0], before["running_mean"][0])
    assert not torch.equal(after["running_mean"][1], before["running_mean"][1])


def test_a_joint_step_gives_each_domain_the_statistics_of_its_own_images() -> None:
    joint, alone = domain_net(Residual()).train(), domain_net(Residual()).train()
    alone.load_state_dict(joint.state_dict())
    image = torch.randn(12, 3, 8, 8)
    outputs = joint(image, [(0, 5), (1, 7)])
    first, second = alone(image[:5], [(0, 5)]), alone(image[5:], [(1, 7)])
    torch.testing.assert_close(outputs[0], first[0])
    torch.testing.assert_close(outputs[1], second[0])
    for (_, a), (_, b) in zip(joint.named_buffers(), alone.named_buffers(), strict=True):
        torch.testing.assert_close(a, b)


def test_fixed_switches_in_batchnorm_are_the_gates_behind_the_activations() -> None:
    for model in (Plain, Residual, Depthwise, SqueezeExcite):
        net = domain_net(model()).train()
        switches = (torch.rand_like(net.switches) < 0.7).float()
        image, runs = torch.randn(10, 3, 8, 8), [(0, 6), (1, 4)]
        folded = net(image, runs, switches)
        gated = net(image, runs, switches.clone().requires_grad_())
        for a, b in zip(folded, gated, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)

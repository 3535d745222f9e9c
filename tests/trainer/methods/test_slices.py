"""Switches of single slices: losses by hand, cuts exact to a slice, whole channels."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from prunion.runtime.bundle import Layer, UnitTable, own_weights
from prunion.trainer.backbone import trace
from prunion.trainer.config import TrainConfig
from prunion.trainer.methods.slices import SliceSwitches
from prunion.trainer.network import DomainNet, adapt_network
from tests.support.networks.small import Depthwise, Plain, Residual, SqueezeExcite, domain_net
from tests.trainer.methods.answering import answers


class Weighed(Plain):
    """Places weighed by a vector, which has no slices."""

    def __init__(self) -> None:
        super().__init__()
        self.vector = nn.Parameter(torch.randn(6))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        weights = torch.matmul(x.permute(0, 2, 3, 1), self.vector).sigmoid()
        return self.bn2(self.conv2(x * weights.unsqueeze(1))).relu().mean((2, 3))


class Grouped(Plain):
    """A convolution of two groups between two others."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, groups=2, bias=False), nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.bn3(self.conv3(x)).relu().mean((2, 3))


def shared() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    return {"a.weight": torch.randn(4, 3, 3, 3), "b.weight": torch.randn(6, 5)}


def switches(domains: int = 2, **train: Any) -> SliceSwitches:
    config = TrainConfig(granularity="slice", **train)
    adapter = SliceSwitches(config, shared(), domains)
    adapter.share = 0.5
    return adapter


def drawn(adapter: SliceSwitches) -> SliceSwitches:
    torch.manual_seed(3)
    with torch.no_grad():
        for scores in adapter.scores.values():
            scores.copy_(torch.randn_like(scores))
    return adapter


def test_a_slice_is_an_input_channel_of_a_filter() -> None:
    adapter, weight = drawn(switches()), shared()
    made = adapter.weights(weight, 1)["a.weight"]
    on = (adapter.scores["a/weight"][1] > 0).view(4, 3)
    assert torch.equal(made != 0, on[..., None, None].expand(4, 3, 3, 3))
    stored = own_weights(adapter.stored(1), lambda name: weight[name].numpy())
    for name, value in adapter.weights(weight, 1).items():
        assert torch.equal(torch.from_numpy(stored[name]), value)
    assert adapter.bits() == 12 + 30
    union = adapter.base(weight)["a.weight"]
    used = (adapter.scores["a/weight"] > 0).any(0).view(4, 3)
    assert torch.equal(union[:, :, 0, 0] != 0, used)
    table = UnitTable(0, {}, (Layer("a.weight", (4, 3, 3, 3), 10), Layer("b.weight", (6, 5), 1)))
    every = np.ones(0, dtype=bool)
    assert adapter.unused_weights(table, every) == round((1 - adapter.used()[0]) * 138)
    constant = replace(table, layers=(*table.layers, Layer("c", (7, 7), 1)))  # of no switches
    assert adapter.unused_weights(constant, every) == adapter.unused_weights(table, every)
    first = int((made[:, :, 0, 0] != 0).sum())
    linear = int((adapter.scores["b/weight"][1] > 0).sum())
    positions = {"a.weight": 10, "b.weight": 1}
    assert adapter.used_macs(positions, 1) == 10 * 9 * first + linear
    both = adapter.used_macs(positions, None)
    assert max(adapter.used_macs(positions, row) for row in (0, 1)) < both < 10 * 108 + 30


@pytest.mark.parametrize("kind", ["union", "intersection", "jaccard", "none"])
def test_the_charge_is_equation_five(kind: Any) -> None:
    """By hand, on 0/1 switches of two domains; λ is 1 before its first step."""
    adapter = drawn(switches(sharing=kind))
    price = torch.cat([torch.full((12,), 9.0), torch.ones(30)]) / 138
    on = torch.cat([adapter.scores[k] for k in ("a/weight", "b/weight")], 1).detach() > 0
    bits = on.float().requires_grad_()
    total = torch.zeros(())
    own = (bits[0] * price).sum() - 0.5
    if own > 0:
        total = total + (1 + 0.05 * float(own.detach()) / 0.5) * own
    union, common = (1 - (1 - bits).prod(0)) * price, bits.prod(0) * price
    loss = {
        "union": union.sum() - 0.5,
        "intersection": 1 - common.sum() / 0.5,
        "jaccard": 1 - common.sum() / union.sum(),
        "none": torch.tensor(0.0),
    }[kind]
    violation = float(loss.detach()) / (0.5 if kind == "union" else 1)
    total = total + (1 + 0.05 * violation) * loss * (violation > 0)
    penalty = adapter.penalty([0], [1, 1], "ramp")
    assert penalty is not None
    torch.testing.assert_close(penalty, total.detach())
    if total.requires_grad:
        total.backward()
        penalty.backward()
        grads = [adapter.scores[k].grad for k in ("a/weight", "b/weight")]
        got = torch.cat([g for g in grads if g is not None], 1)
        torch.testing.assert_close(got, bits.grad)


def test_where_nothing_is_charged_for_the_task_alone_teaches() -> None:
    """No budget loss and no sharing loss: there is no gradient of a constant."""
    adapter = drawn(switches(2, sharing="none", domain_budget=False))
    assert adapter.penalty([0, 1], [1, 1], "ramp") is None
    held = SliceSwitches(TrainConfig(granularity="slice"), shared(), 2, shared())
    held.share = 0.5
    assert held.penalty([0, 1], [1, 1], "ramp") is None


def test_an_absent_domain_has_no_budget_loss() -> None:
    adapter = switches(3, sharing="none")
    penalty = adapter.penalty([1], [1, 1, 1], "ramp")
    assert penalty is not None
    penalty.backward()
    grad = adapter.scores["a/weight"].grad
    assert grad is not None
    assert grad[1].all()
    assert not grad[[0, 2]].any()


@pytest.mark.parametrize(("kind", "charges"), [("union", 0), ("intersection", 1), ("jaccard", 1)])
def test_domains_that_differ_are_charged_at_the_whole_budget_too(kind: Any, charges: int) -> None:
    """Eqs. 6 and 9 know no budget that allows it: the printed β = 1.00 rows have their loss."""
    adapter = drawn(switches(3, sharing=kind))
    adapter.share = 1.0
    penalty = adapter.penalty([0], [1] * 3, "ramp")
    assert (penalty is not None and float(penalty.detach()) > 0) is bool(charges)


@pytest.mark.parametrize("method", ["bap", "ba2"])
def test_the_cut_is_exact_to_a_slice(method: Any) -> None:
    adapter = drawn(switches(3, method=method))
    before = {k: v.detach().clone() for k, v in adapter.scores.items()}
    assert not adapter.advance({}, 0, "ramp")
    assert adapter.advance({}, 0, "settle")
    union, own = adapter.used()
    held = [union] if method == "bap" else own
    assert all(0.5 - 9 / 138 < cost <= 0.5 for cost in held)
    for key, scores in adapter.scores.items():
        assert not ((scores > 0) & (before[key] <= 0)).any()  # nothing comes back
    assert adapter.penalty([0], [1] * 3, "settle") is None
    assert not adapter.weights(shared(), 0)["a.weight"].requires_grad
    assert not adapter.advance({}, 0, "settle")


@pytest.mark.parametrize("allowed", [29.5, 57, 69, 138, 500])
def test_constants_beside_the_slices_are_paid_for(allowed: float) -> None:
    """138 weights have switches, 12 are a constant of the network, which any budget counts."""
    adapter = drawn(switches(1))
    on = adapter.used()[0] * 138
    adapter.keep_to(allowed, 150)
    assert adapter.share == pytest.approx(min(1, (allowed - 12) / 138))  # losses aim at the cut
    assert adapter.least_weights(150) == 12 + 9 + 1
    adapter.advance({}, 0, "settle")
    used = adapter.used()[0] * 138
    assert min(on, allowed - 12 - 9) < used + 1e-6 and used + 12 <= allowed + 1e-6


def test_a_vector_is_a_constant_of_the_budget() -> None:
    net = domain_net(Weighed())
    adapt_network(net, TrainConfig(granularity="slice"))
    adapter, full = net.adapter, net.units.table.params(np.ones(net.units.table.count, bool))
    assert isinstance(adapter, SliceSwitches) and adapter.names == ("conv1.weight", "conv2.weight")
    assert adapter.whole == full - 6
    adapter.keep_to(0.5 * full, full)
    adapter.advance({}, 0, "settle")
    assert 0.5 * full - 9 < adapter.used()[0] * adapter.whole + 6 <= 0.5 * full
    assert not answers(net).isnan().any()


def test_slices_of_whole_channels_are_channel_switches() -> None:
    units = domain_net(Residual(), (3, 4))
    table = units.units.table
    off = int(table.slots["conv2.weight", 0][2])
    with torch.no_grad():
        units.switches[1, off] = 0
    slices = domain_net(Residual(), (3, 4))
    slices.load_state_dict({**units.state_dict(), "switches": torch.ones_like(units.switches)})
    adapt_network(slices, TrainConfig(granularity="slice"))
    assert isinstance(slices.adapter, SliceSwitches)
    with torch.no_grad():  # whoever reads the channel is off: its value then does not matter
        inputs = table.slots["conv3.weight", 1] == off
        scores = slices.adapter.scores["conv3/weight"][1].view(6, 8)
        scores[:, torch.from_numpy(inputs)] = -1
    torch.testing.assert_close(answers(slices), answers(units), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("method", ["bap", "ba2"])
@pytest.mark.parametrize("kind", [Depthwise, SqueezeExcite, Residual, Grouped])
def test_the_cut_leaves_every_layer_a_slice_in_every_domain(
    method: Any, kind: type[nn.Module]
) -> None:
    """Also at the least limit, where these slices are all there is, and so must meet."""
    net = domain_net(kind())
    full = net.units.table.params(np.ones(net.units.table.count, bool))
    for least in (False, True):
        adapt_network(net, TrainConfig(granularity="slice", method=method))
        adapter = net.adapter
        assert isinstance(adapter, SliceSwitches)
        allowed = adapter.least_weights(full) if least else 0.5 * full
        adapter.keep_to(allowed, full)
        drawn(adapter)
        with torch.no_grad():  # one layer has nothing on, in one domain or in both
            list(adapter.scores.values())[1].abs_().neg_()
            list(adapter.scores.values())[-1][1].abs_().neg_()
        adapter.advance({}, 0, "settle")
        for name, bits in adapter.slices().items():
            assert bits.flatten(1).any(1).all(), (name, least)
        union, own = adapter.used()
        most = max([union] if method == "bap" else own) * adapter.whole
        assert most <= allowed + 1e-6 and (not least or most == pytest.approx(allowed))


def test_a_cut_that_leaves_every_layer_some_keeps_the_best_alone() -> None:
    adapter = drawn(switches(2))
    learned = torch.cat([adapter.scores[k].detach() for k in ("a/weight", "b/weight")], 1)
    worth = learned.clamp(min=0).sum(0)
    adapter.advance({}, 0, "settle")
    on = torch.cat([adapter.scores[k].detach() > 0 for k in ("a/weight", "b/weight")], 1)
    assert on.equal((learned > 0) & on.any(0))
    assert worth[on.any(0)].min() > worth[~on.any(0)].max()


def test_ba2_of_one_domain_is_the_union_of_one() -> None:
    found = []
    for method in ("bap", "ba2"):
        adapter = drawn(switches(1, method=method, domain_budget=method == "ba2"))
        penalty = adapter.penalty([0], [1], "ramp")
        assert penalty is not None
        penalty.backward()
        adapter.advance({}, 0, "settle")
        gradients = [s.grad for s in adapter.scores.values()]
        found.append((float(penalty.detach()), gradients, adapter.stored(0)))
    assert found[0][0] == pytest.approx(found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(one, other)
    assert all((found[0][2][key] == found[1][2][key]).all() for key in found[0][2])


@pytest.mark.parametrize("method", ["bap", "ba2"])
def test_layers_that_are_kept_have_all_their_slices(method: Any) -> None:
    net = DomainNet(trace(Residual(), 8, 8), (3, 4), ["conv2"])
    adapt_network(net, TrainConfig(granularity="slice", method=method))
    adapter = net.adapter
    assert isinstance(adapter, SliceSwitches)
    torch.manual_seed(3)
    with torch.no_grad():
        for name, scores in adapter.scores.items():
            assert scores.requires_grad == (name != "conv2/weight")
            if scores.requires_grad:
                scores.copy_(torch.randn_like(scores))
    (group,) = adapter.groups(TrainConfig())
    assert len(group["params"]) == len(adapter.scores) - 1
    adapter.share, adapter._table = 0.6, None
    assert adapter.advance({}, 0, "settle")
    assert adapter.slices()["conv2.weight"].all()
    union, own = adapter.used()
    assert 0.5 < (union if method == "bap" else min(own)) <= 0.6
    again = SliceSwitches(TrainConfig(granularity="slice"), shared(), 2, ["a.weight"])
    again.share = 0.1  # less than what stays: the rest goes
    assert again.advance({}, 0, "settle")
    assert again.slices()["a.weight"].all() and not again.slices()["b.weight"].any()

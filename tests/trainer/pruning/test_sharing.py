"""The union, what it charges each domain, and the multiplier."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from torch import nn

from prunion.trainer.backbone import trace
from prunion.trainer.channels import find_units
from prunion.trainer.cost import counted_pricer
from prunion.trainer.methods import union
from prunion.trainer.pruning.sharing import union_price
from tests.support.networks.small import Plain, Residual


@pytest.mark.parametrize("kind", ["params", "macs"])
@pytest.mark.parametrize("model", [Plain, Residual])
def test_cost_equals_the_count(kind: Literal["params", "macs"], model: type[nn.Module]) -> None:
    table = find_units(trace(model(), 8, 8)).table
    cost = counted_pricer(kind, table).cost_model()
    full = getattr(table, kind)(np.ones(table.count, dtype=bool))
    generator = np.random.default_rng(0)
    for _ in range(20):
        alive = generator.random(table.count) < 0.6
        expected = getattr(table, kind)(alive)
        assert float(cost(torch.from_numpy(alive))) == pytest.approx(expected / full, abs=1e-12)


def test_cost_is_differentiable_everywhere() -> None:
    table = find_units(trace(Residual(), 8, 8)).table
    kept = torch.rand(table.count, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(counted_pricer("macs", table).cost_model(), kept)


def test_union_is_inclusion_exclusion() -> None:
    a, b = torch.rand(2, 10)
    torch.testing.assert_close(union(torch.stack([a, b])), a + b - a * b)


def test_users_share_the_price_of_a_channel() -> None:
    table = find_units(trace(Plain(), 8, 8)).table
    cost = counted_pricer("params", table).cost_model()
    switches = torch.zeros(4, table.count)
    switches[:, 0] = 1  # everybody
    switches[0, 1] = 1  # the first domain alone; nobody uses unit 2
    value, price = union_price(switches, cost)
    assert value == pytest.approx(float(cost(union(switches))))
    torch.testing.assert_close(price[:, 0], torch.full((4,), float(price[0, 1]) / 4))
    assert price[1:, 1].tolist() == [0, 0, 0]  # joining a paid channel is free
    assert (price[:, 2] == price[0, 1]).all()  # the first one in would pay it all


def test_the_plain_union_gradient_is_zero_where_two_domains_agree() -> None:
    switches = torch.ones(2, 5, requires_grad=True)
    union(switches).sum().backward()
    assert switches.grad is not None
    assert not switches.grad.any()

"""A parameter that is used in two forms would learn as two."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone import trace
from prunion.trainer.network import DomainNet

Forward = Callable[[Any, torch.Tensor], torch.Tensor]


class Net(nn.Module):
    """A convolution, and one more weight that is used as `forward` says."""

    def __init__(self, forward: Forward, *shape: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.weight = nn.Parameter(torch.randn(shape) / 4)
        self.forms = forward

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.forms(self, self.conv(x).relu()).mean((2, 3))


def masked(forward: Forward, *shape: int, frozen: bool = False) -> DomainNet:
    torch.manual_seed(0)
    net = Net(forward, *shape)
    net.weight.requires_grad_(not frozen)
    return DomainNet(trace(net, 8, 8), (2, 3))


def mirrored(m: Net, x: torch.Tensor) -> torch.Tensor:
    return F.conv2d(F.conv2d(x, m.weight).relu(), m.weight.transpose(0, 1))


def part(m: Net, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([F.conv2d(x, m.weight).relu(), F.conv2d(x, m.weight[:4]).relu()], 1)


def parts_that_meet(m: Net, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([F.conv2d(x, m.weight[:4]).relu(), F.conv2d(x, m.weight[2:8]).relu()], 1)


def gate(m: Net, x: torch.Tensor) -> torch.Tensor:
    share = m.weight.sigmoid()
    return share * x + (1 - share) * m.norm(x)


@pytest.mark.parametrize(
    ("forward", "shape", "told"),
    [
        (mirrored, (12, 8, 1, 1), "(as itself, as transpose), .* 192 numbers in place of 96"),
        (part, (8, 8, 1, 1), "(as itself, as slice_1), .* 96 numbers in place of 64"),
        (parts_that_meet, (40, 8, 1, 1), "slice_1, as slice_2.* 80 numbers in place of 64"),
        (gate, (1,), "(as sigmoid, as 1 - sigmoid), .* 2 numbers in place of 1"),
    ],
)
def test_two_forms_are_refused(forward: Forward, shape: tuple[int, ...], told: str) -> None:
    """They were learned as two, and counted as two."""
    told = told.replace("(", r"\(").replace(")", r"\)")
    with pytest.raises(
        UnsupportedGraphError, match=f"parameter weight is used in 2 forms .*{told}"
    ):
        masked(forward, *shape)


def test_what_stays_as_it_is_may_have_two() -> None:
    net = masked(mirrored, 12, 8, 1, 1, frozen=True)
    assert not any(x.requires_grad for x in net.trunk.parameters() if x.numel() == 96)


def test_where_nothing_learns_two_forms_are_told_alone(caplog: pytest.LogCaptureFixture) -> None:
    """As of a frozen trunk, which was refused for what it could not learn."""
    with caplog.at_level(logging.INFO):
        DomainNet(trace(Net(mirrored, 12, 8, 1, 1), 8, 8), (2, 3), tuned=False)
    assert "which count as 192 numbers in place of 96; none of them learns" in caplog.text


def halves(m: Net, x: torch.Tensor) -> torch.Tensor:
    return torch.cat([F.conv2d(x, m.weight[:4]).relu(), F.conv2d(x, m.weight[4:]).relu()], 1)


def thrice(m: Net, x: torch.Tensor) -> torch.Tensor:
    for _ in range(3):  # standardised: one weight
        x = F.conv2d(x, m.weight - m.weight.mean(1, keepdim=True)).relu()
    return x


def mixture(m: Net, x: torch.Tensor) -> torch.Tensor:
    share = m.weight.relu()
    share = share / (share.sum() + 1e-4)
    return share[0] * x + share[1] * m.norm(x)


def folded(m: Net, x: torch.Tensor) -> torch.Tensor:
    """BatchNorm inside its convolution, whose weight and bias have its scale in common."""
    scale = m.norm.weight * (m.norm.running_var + m.norm.eps).rsqrt()
    bias = m.norm.bias - m.norm.running_mean * scale
    return F.conv2d(x, m.weight * scale.view(-1, 1, 1, 1), bias).relu()


@pytest.mark.parametrize(
    ("forward", "shape"),
    [(halves, (8, 8, 1, 1)), (thrice, (8, 8, 1, 1)), (mixture, (2,)), (folded, (8, 8, 1, 1))],
)
def test_one_that_makes_no_more_numbers_than_it_has_learns_on(
    forward: Forward, shape: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO):
        net = masked(forward, *shape)
    assert sum(x.requires_grad for x in net.trunk.parameters()) > 2
    assert "in place of" not in caplog.text


def spelt(m: Net, x: torch.Tensor) -> torch.Tensor:
    """A scale in three spellings, the one with the fewest axes not first."""
    x = m.norm(x) * m.weight.view(1, -1, 1, 1)
    return x + m.weight[:, None, None] * x + m.weight.reshape(1, 8, 1, 1) * x.relu()


def test_spellings_of_one_shape_are_one_weight() -> None:
    """`[C, 1, 1]` and `[1, C, 1, 1]` were refused as two forms."""
    net = masked(spelt, 8)
    assert [list(x.shape) for x in net.trunk.parameters() if list(x.shape)[-2:] == [1, 1]] == [
        [8, 1, 1]
    ]


def test_a_weight_of_more_numbers_than_it_is_made_of_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def twice(m: Net, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, torch.cat([m.weight, m.weight.flip(3)])).relu()

    with caplog.at_level(logging.INFO):
        masked(twice, 8, 8, 3, 3)
    assert "as it is: from weight, 1,152 numbers in place of 576" in caplog.text

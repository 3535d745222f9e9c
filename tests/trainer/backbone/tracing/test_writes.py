"""In-place writes reach all who read that memory later, whatever the numbers, or are refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone import op_name, trace


class Between(nn.Module):
    """A convolution, what is to be traced, and another convolution."""

    def __init__(self, middle: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 6, 1)
        self.middle = middle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.middle(self.first(x))).mean((2, 3))


def whole_of_a_view(y: torch.Tensor) -> torch.Tensor:
    F.hardtanh_(y.flatten(2), -60.0, 60.0)
    return y


def seen_by_an_earlier_view(y: torch.Tensor) -> torch.Tensor:
    view = y.flatten(2)
    y.clamp_(max=60)
    return view.unflatten(2, (8, 8))


def under_no_grad(y: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        y.detach()[:, :4].clamp_(max=60)
    return y


def part_of_a_view(y: torch.Tensor) -> torch.Tensor:
    y.flatten(2)[:, :4].clamp_(max=60)
    return y


def every_second(y: torch.Tensor) -> torch.Tensor:
    y[:, ::2].clamp_(max=60)
    return y


def one_image(y: torch.Tensor) -> torch.Tensor:
    y[:1].clamp_(max=60)  # which the example's noise never reaches
    return y


@pytest.mark.parametrize(
    "middle",
    [
        whole_of_a_view,
        seen_by_an_earlier_view,
        under_no_grad,
        part_of_a_view,
        every_second,
        one_image,
    ],
)
def test_a_write_that_noise_does_not_show_is_refused_if_it_would_be_lost(
    middle: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    with pytest.raises(UnsupportedGraphError, match="writes into a part of another tensor") as got:
        trace(Between(middle), 8, 8)
    assert "clamp_" in str(got.value) or "hardtanh_" in str(got.value)
    assert "\n" not in str(got.value)


def fresh(y: torch.Tensor) -> torch.Tensor:
    y += 1
    return F.relu6(y, inplace=True)


def view_alone(y: torch.Tensor) -> torch.Tensor:
    return y.flatten(2).clamp_(max=1).unflatten(2, (8, 8))


def same_by_another_name(y: torch.Tensor) -> torch.Tensor:
    y.contiguous().clamp_(max=1)
    return y


def each_half(y: torch.Tensor) -> torch.Tensor:
    return torch.cat([y[:, :4].relu_(), y[:, 4:].clamp_(max=0.1)], 1)


def the_other_half(y: torch.Tensor) -> torch.Tensor:
    first = y[:, :4].relu_()
    return torch.cat([first, y[:, 4:]], 1)


def view_made_later(y: torch.Tensor) -> torch.Tensor:
    y.relu_()
    return y.flatten(2).unflatten(2, (8, 8))


def copy(y: torch.Tensor) -> torch.Tensor:
    return y.transpose(2, 3).reshape(-1, 8, 64).relu_().mean(2)[..., None, None] + y


def sizes(y: torch.Tensor) -> torch.Tensor:
    view = y.flatten(2).relu_()
    return view.view(y.shape[0], 8, 8, 8)


def part(y: torch.Tensor) -> torch.Tensor:
    y[:, :4].clamp_(max=6)
    return y


def one_half_into_the_other(y: torch.Tensor) -> torch.Tensor:
    half = y[:, :4].clamp_(max=6)
    y[:, 4:].copy_(y[:, :4])
    return torch.cat([half, y[:, 4:]], 1)


def parts_of_parts(y: torch.Tensor) -> torch.Tensor:
    y[:, 2:6][:, 1, :, 2:-1] += y[:, :1, :, 2:-1].mean(1)
    y[..., -1] = y[..., 0] * 2
    return y * 2


def written_twice(y: torch.Tensor) -> torch.Tensor:
    half, other = y[:, :4], y[:, 4:] * 2
    half.relu_()
    y[:, 2:6] = other
    other.zero_()
    y[:, 7:].fill_(0.5)
    y[:, :1] = y[:, 3:4, :1, :1]
    return torch.cat([y, other], 1)[:, :8] + y


def all_of_it(y: torch.Tensor) -> torch.Tensor:
    y[:] = y.relu()
    y[:, 3].zero_()
    return y


def copied(y: torch.Tensor) -> torch.Tensor:
    made, source = torch.zeros_like(y), y.relu()
    made.copy_(source)
    source.add_(1)
    y.copy_(source.double() * made[:, :1])
    y[:, 6:].copy_(y[:, :1])
    made.copy_(source[:, :1])
    return torch.cat([made[:, :2], y[:, 2:]], 1)


@pytest.mark.parametrize(
    "middle",
    [
        part,
        one_half_into_the_other,
        parts_of_parts,
        written_twice,
        all_of_it,
        copied,
        fresh,
        view_alone,
        same_by_another_name,
        each_half,
        the_other_half,
        view_made_later,
        copy,
        sizes,
    ],
)
def test_a_write_that_all_readers_follow_is_none(
    middle: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    model = Between(middle).eval()
    module = trace(model, 8, 8)
    assert not any(op_name(n).endswith("_") for n in module.graph.nodes)
    images = 30 * torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(module(images), model(images))

"""A graph that answers like its model and would learn otherwise is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone import trace
from tests.support.networks.small import Plain


class Rounded(torch.autograd.Function):
    """A straight-through estimator: rounded forward, untouched backward."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.round()

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return gradients[0]


def scaled(x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        size = x.abs().amax((1, 2, 3), keepdim=True)
    return x / (size + 1e-3)


class Middle(Plain):
    def __init__(self, middle: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.middle = middle

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.middle(self.bn1(self.conv1(x)).relu())
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


LOST = {
    "detach": lambda x: x + ((x * 4).round() / 4 - x).detach(),
    "function": lambda x: Rounded.apply(x * 4) / 4,
    "no_grad": scaled,
}


@pytest.mark.parametrize("middle", LOST.values(), ids=LOST)
def test_gradients_that_the_graph_does_not_have_are_missed(
    middle: Callable[[torch.Tensor], torch.Tensor],
) -> None:
    model = Middle(middle)
    with pytest.raises(
        UnsupportedGraphError, match=r"the gradient of conv1\.weight differs"
    ) as got:
        trace(model, 8, 8)
    assert "\n" not in str(got.value)
    for parameter in model.parameters():  # frozen by their owner, and left so
        parameter.requires_grad_(False)
    with pytest.raises(UnsupportedGraphError, match=r"the gradient of conv1\.weight differs"):
        trace(model, 8, 8)
    assert not any(parameter.requires_grad for parameter in model.parameters())


def test_a_stem_that_learns_nothing_may_be_run_without_gradients() -> None:
    class Frozen(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            with torch.no_grad():
                x = self.bn1(self.conv1(x)).relu()
            return self.bn2(self.conv2(x)).relu().mean((2, 3))

    model = Frozen()
    with pytest.raises(UnsupportedGraphError, match=r"requires_grad_\(False\)"):
        trace(model, 8, 8)
    model.conv1.requires_grad_(False)
    model.bn1.requires_grad_(False)
    module = trace(model, 8, 8)
    assert not module.get_parameter("conv1.weight").requires_grad
    assert module.get_parameter("conv2.weight").requires_grad


def test_a_model_that_cannot_learn_at_all_has_no_gradients_to_compare() -> None:
    class Forward(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            gate = self.bn1(self.conv1(x)).sigmoid()
            square = gate * gate
            gate.mul_(2)  # autograd still needs it
            return self.bn2(self.conv2(square + gate)).relu().mean((2, 3))

    trace(Forward(), 8, 8)


class Moving(Plain):
    """A scale that every forward pass moves on."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("pace", torch.rand(1, 6, 1, 1) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.pace = self.get_buffer("pace") * 0.9 + 0.1
        x = self.bn1(self.conv1(x)).relu() * self.pace
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


def test_a_buffer_that_forward_changes_is_named() -> None:
    with pytest.raises(UnsupportedGraphError, match="Moving changes its buffer pace whenever"):
        trace(Moving(), 8, 8)


def test_a_buffer_of_nan_has_not_changed() -> None:
    class Masked(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("mask", torch.full((2,), torch.nan))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bn1(self.conv1(x)).relu()
            return self.bn2(self.conv2(x * x.detach())).relu().mean((2, 3))

    with pytest.raises(UnsupportedGraphError, match=r"gradient of conv1.weight differs"):
        trace(Masked(), 8, 8)

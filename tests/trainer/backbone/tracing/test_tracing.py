"""Tracing keeps names, drops in-place writes and refuses what it cannot follow."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone import op_name, trace
from prunion.trainer.network import DomainNet
from tests.support.networks.counting import macs_by_running
from tests.support.networks.small import Plain, Residual


def test_the_graph_is_flat_functional_and_keeps_names() -> None:
    module = trace(Residual(), 8, 8)
    names = {op_name(n) for n in module.graph.nodes} - {""}
    assert names == {"conv2d", "batch_norm", "relu", "add", "adaptive_avg_pool2d", "flatten"}
    assert "conv3.weight" in dict(module.named_parameters())


def test_a_value_read_after_being_overwritten_keeps_its_meaning() -> None:
    class Leading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            y = self.conv(x.relu_())  # x itself is overwritten, and read again below
            return (x + y).mean((2, 3))

    model, image = Leading().eval(), torch.randn(3, 3, 8, 8)
    module = trace(model, 8, 8)
    torch.testing.assert_close(module(image), model(image))


def test_what_a_scale_of_zero_hides_at_the_start_is_compared_too() -> None:
    class Gated(nn.Module):
        """ReZero: what the branch computes shows once `scale` has learnt."""

        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 3, padding=1)
            self.inner = nn.Conv2d(8, 8, 3, padding=1)
            self.scale = nn.Parameter(torch.zeros(1))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            y = self.inner(x)
            y.flatten(2)[:, :4].mul_(3)
            return (x + self.scale * y).mean((2, 3))

    model = Gated()
    with pytest.raises(UnsupportedGraphError, match="writes into a part of another tensor"):
        trace(model, 8, 8)
    assert model.scale.tolist() == [0.0]

    class Sound(Gated):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return (x + self.scale * self.inner(x)).mean((2, 3))

    sound = Sound()
    module = trace(sound, 8, 8)
    assert module.get_parameter("scale").tolist() == sound.scale.tolist() == [0.0]


def test_dropout_disappears_and_any_batch_fits() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Dropout(0.5), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    module = trace(model, 8, 8)
    assert not any("dropout" in op_name(n) for n in module.graph.nodes)
    module.train()
    for count in (1, 5):
        image = torch.randn(count, 3, 8, 8)
        torch.testing.assert_close(module(image), model.eval()(image))


def test_data_dependent_control_flow_is_refused_in_one_line() -> None:
    class Branch(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3))

    with pytest.raises(UnsupportedGraphError) as caught:
        trace(Branch(), 8, 8)
    assert "\n" not in str(caught.value)


class Halves(Plain):
    """Answers in bfloat16, which its graph, without the region, does not."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().forward(x)


def test_a_forward_with_autocast_in_it_is_refused_in_one_line() -> None:
    with pytest.raises(UnsupportedGraphError, match="without what is random or in autocast"):
        trace(Halves(), 8, 8)


def test_numbers_that_are_not_finite_end_no_comparison() -> None:
    """Their weights may come later, from a file."""
    model = Plain()
    with torch.no_grad():
        model.conv1.weight.fill_(torch.nan)
    assert "conv1.weight" in dict(trace(model, 8, 8).named_parameters())


class Nowhere(Plain):
    """No number of its features is one, whatever the weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * torch.sqrt(-1 - x.abs().mean())


def test_features_that_are_no_numbers_prove_nothing() -> None:
    with pytest.raises(UnsupportedGraphError, match="does not compute the model's function"):
        trace(Nowhere(), 8, 8)


class Twice(Plain):
    """A layer that is called twice on one tensor, as a gate of itself."""

    def __init__(self) -> None:
        super().__init__()
        self.same = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.same(x) * self.same(x).sigmoid() + self.same(x + 1) + self.same(x + 1.0)
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


def test_what_is_computed_twice_is_computed_once() -> None:
    """As torch's exporter has it; a number of another type may make another tensor."""
    module = trace(Twice(), 8, 8)
    names = [op_name(node) for node in module.graph.nodes]
    assert (names.count("sigmoid"), names.count("conv2d")) == (1, 5)
    one = DomainNet(module, [2, 3])
    every = np.ones(one.units.table.count, dtype=bool)
    assert one.units.table.macs(every) == macs_by_running(one, 8)


def test_a_network_of_more_than_images_is_told_so() -> None:
    class Two(Plain):
        def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + y

    for cut in (None, "conv1"):
        with pytest.raises(UnsupportedGraphError, match=r"its forward\(x, y\) .* images .* alone"):
            trace(Two(), 8, 8, cut)


def test_a_batch_may_be_counted_by_len() -> None:
    class Tokens(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x).reshape(len(x), -1)

    model, images = Tokens().eval(), torch.randn(5, 3, 8, 8)
    torch.testing.assert_close(trace(model, 8, 8)(images), model(images))


def test_a_batch_whose_size_is_fixed_is_told() -> None:
    class Fixed(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * (1.0 if x.shape[0] == 2 else 2.0)

    with pytest.raises(UnsupportedGraphError, match=r"Fixed cannot be traced: .*use x\.shape\[0\]"):
        trace(Fixed(), 8, 8)

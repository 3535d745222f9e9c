"""Which channels live or die together."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from prunion.runtime.errors import ConfigError
from prunion.trainer.backbone import trace
from prunion.trainer.channels import find_units
from tests.support.networks.small import Depthwise, Plain, Residual, SqueezeExcite


def slots(model: nn.Module, keep: tuple[str, ...] = ()) -> dict[tuple[str, int], list[int]]:
    found = find_units(trace(model, 8, 8), keep).table.slots
    return {key: value.tolist() for key, value in found.items()}


def test_a_channel_is_one_unit_from_its_filter_to_its_readers() -> None:
    table = slots(Plain())
    assert table["conv1.weight", 0] == table["bn1.weight", 0] == table["conv2.weight", 1]
    assert len(set(table["conv1.weight", 0])) == 6
    assert table["conv1.weight", 1] == [-1, -1, -1]
    assert table["head_weight", 1] == table["conv2.weight", 0]


def test_an_addition_ties_both_sides() -> None:
    table = slots(Residual())
    assert table["conv3.weight", 0] == table["conv1.weight", 0]
    assert set(table["conv2.weight", 0]).isdisjoint(table["conv1.weight", 0])


def test_a_depthwise_channel_lives_with_its_input() -> None:
    table = slots(Depthwise())
    assert table["depth.weight", 0] == table["expand.weight", 0] == table["project.weight", 1]
    assert ("depth.weight", 1) not in table
    assert table["project.weight", 0] == table["stem.weight", 0]


def test_a_gate_lives_with_what_it_gates() -> None:
    units = find_units(trace(SqueezeExcite(), 8, 8))
    table = units.table.slots
    assert table["up.weight", 0].tolist() == table["conv.weight", 0].tolist()
    explicit = [g for g in units.gates if not g.folded]
    # `down` has a bias and no BatchNorm: only a gate in the graph can switch its channels off
    assert [g.units.tolist() for g in explicit] == [table["down.weight", 0].tolist()]


def test_grouped_convolutions_lose_the_same_position_in_every_group() -> None:
    class Grouped(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.conv2 = nn.Conv2d(6, 8, 3, padding=1, groups=2, bias=False)

    table = slots(Grouped())
    assert table["conv1.weight", 0] == [0, 1, 2, 0, 1, 2]
    assert table["conv2.weight", 1] == [0, 1, 2]
    assert table["conv2.weight", 0][:4] == table["conv2.weight", 0][4:]


def test_a_single_output_channel_is_not_taken_for_depthwise() -> None:
    class Narrow(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = nn.Conv2d(3, 1, 3, padding=1), nn.BatchNorm2d(1)
            self.conv2 = nn.Conv2d(1, 8, 3, padding=1, bias=False)

    table = slots(Narrow())
    assert table["conv2.weight", 1] == [0]
    assert len(set(table["conv2.weight", 0])) == 8


def test_keep_patterns_protect_channels() -> None:
    for pattern in ("conv1", "*1"):
        table = slots(Plain(), keep=(pattern,))
        assert table["conv1.weight", 0] == [-1] * 6
        assert min(table["conv2.weight", 0]) == 0
    with pytest.raises(ConfigError, match=r"keep: 'conv3' is no layer: .* such as conv1, "):
        slots(Plain(), keep=("conv1", "conv3"))


def test_a_weight_used_twice_ties_both_uses() -> None:
    class Twice(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.conv2, self.bn2 = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bn1(self.conv1(x)).relu()
            x = self.bn2(self.conv2(x)).relu()
            return self.bn2(self.conv2(x)).relu().mean((2, 3))

    units = find_units(trace(Twice(), 8, 8))
    table = units.table.slots
    assert table["conv2.weight", 0].tolist() == table["conv2.weight", 1].tolist()
    layer = {x.weight: x for x in units.table.layers}["conv2.weight"]
    assert layer.positions == 2 * 64


def test_an_activation_off_zero_is_followed_by_a_gate_in_the_graph() -> None:
    class Sigmoid(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bn1(self.conv1(x)).sigmoid()
            return self.bn2(self.conv2(x)).relu().mean((2, 3))

    gates = find_units(trace(Sigmoid(), 8, 8)).gates
    assert [g.node for g in gates if not g.folded] == ["sigmoid"]


def test_cost_is_counted_from_what_is_kept() -> None:
    table = find_units(trace(Plain(), 8, 8)).table
    alive = np.ones(table.count, dtype=bool)
    assert table.params(alive) == 3 * 6 * 9 + 6 * 8 * 9
    assert table.macs(alive) == 64 * table.params(alive)
    alive[[0, 1]] = False  # two channels of conv1
    assert table.params(alive) == 3 * 4 * 9 + 4 * 8 * 9


@pytest.mark.parametrize("name", ["layer_norm", "softmax"])
def test_what_weighs_channels_against_each_other_keeps_them_whole(name: str) -> None:
    class Odd(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv1(x)
            if name == "layer_norm":
                x = nn.functional.layer_norm(x, x.shape[1:])
            else:
                x = x.softmax(1)
            return self.conv2(x).mean((2, 3))

    units = find_units(trace(Odd(), 8, 8))
    assert list(units.whole) == [name]
    assert units.table.slots["conv1.weight", 0].tolist() == [-1] * 6
    assert units.table.slots["conv2.weight", 0].tolist() == list(range(8))
    (note,) = units.notes()
    assert note.startswith(f"node {name}: it ") and note.endswith("are kept whole")


def test_a_mean_over_channels_needs_the_dead_ones_to_be_zero() -> None:
    """It is their sum times a constant, whatever stays of them."""

    class Mean(Plain):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv1(x)
            return self.conv2(x - x.mean(1, keepdim=True)).mean((2, 3))

    units = find_units(trace(Mean(), 8, 8))
    assert units.table.slots["conv1.weight", 0].tolist() == list(range(6))
    assert not units.whole
    (gate,) = [g for g in units.gates if any(r.startswith("sum") for r in g.readers)]
    assert not gate.folded


def test_one_channel_that_meets_many_does_not_tie_them() -> None:
    class Places(Plain):
        def __init__(self) -> None:
            super().__init__()
            self.places = nn.Conv2d(6, 1, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bn1(self.conv1(x)).relu()
            x = x * self.places(x).sigmoid().expand_as(x)
            return self.bn2(self.conv2(x)).relu().mean((2, 3))

    table = slots(Places())
    assert table["conv1.weight", 0] == list(range(6))
    assert table["places.weight", 0] == [-1]


def test_a_network_without_a_channel_to_remove_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"keep = \* keeps every channel of the network"):
        slots(Plain(), keep=("*",))

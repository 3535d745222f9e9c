"""What cannot be sliced is refused in one line: which node, why, what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunion.exporter.graph import rehearse_export
from prunion.exporter.slim import slim_network
from prunion.runtime.errors import UnsupportedGraphError
from tests.support.networks.small import Plain, domain_net


class LayerNorm(Plain):
    """One normalisation over all channels, which the features are."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv1(x).mean((2, 3))
        return nn.functional.layer_norm(x, [6])


class ClassToken(Plain):
    """ViT's first token is made of a parameter, and all others meet it."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 6, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).flatten(2)
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 2).mean(2)


class Attention(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).flatten(2)
        return nn.functional.scaled_dot_product_attention(x, x, x).mean(2)


class WrittenInto(Plain):
    """Every other channel of what is computed is overwritten."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x[:, ::2].mul_(3.0)
        return x.mean((2, 3))


NOTHING = "no channel of the network could be removed"
REASONS = {
    LayerNorm: ("node layer_norm: ", "normalises over the channels", NOTHING, "[backbone] cut"),
    ClassToken: ("node cat: ", "channels that are never removed", NOTHING, "[backbone] cut"),
    Attention: ("node scaled_dot_product_attention: ", "attention weighs", NOTHING, "BatchNorm"),
    WrittenInto: ("node mul_: ", "writes into a part of another tensor", "torch.where", ""),
}


@pytest.mark.parametrize("model", REASONS)
def test_a_refusal_names_the_node_the_reason_and_the_way_out(model: type[nn.Module]) -> None:
    with pytest.raises(UnsupportedGraphError) as caught:
        domain_net(model())
    message = str(caught.value)
    assert message.startswith(REASONS[model][0]) and "\n" not in message
    for words in REASONS[model][1:]:
        assert words in message


@pytest.mark.slow
@pytest.mark.parametrize("name", ["convnext_tiny", "vit_b_16", "swin_t"])
def test_transformers_keep_their_streams_and_lose_hidden_channels(name: str) -> None:
    from torchvision.models import get_model

    from prunion.exporter.graph import rehearse_export
    from prunion.trainer.backbone import drop_classifier, trace
    from prunion.trainer.network import DomainNet

    side = 224 if name == "vit_b_16" else 64
    module = trace(get_model(name, weights=None), side, side)
    drop_classifier(module.graph)
    net = DomainNet(module, [3, 4])
    assert any("normalises over the channels" in note for note in net.units.notes())
    whole = [units for (_, axis), units in net.units.table.slots.items() if axis == 0]
    assert any((units < 0).all() for units in whole) and any((units >= 0).all() for units in whole)
    rehearse_export(net, side, side)


class DynamicConv(Plain):
    """A filter of its own for every image, as groups of one long image."""

    def __init__(self) -> None:
        super().__init__()
        self.made = nn.Linear(6, 6 * 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        weight = self.made(x.mean((2, 3))).reshape(-1, 1, 3, 3)
        x = nn.functional.conv2d(x.reshape(1, -1, 8, 8), weight, padding=1, groups=x.shape[0] * 6)
        return self.bn2(self.conv2(x.view(-1, 6, 8, 8))).relu().mean((2, 3))


class LearnedBound(Plain):
    def __init__(self) -> None:
        super().__init__()
        self.bound = nn.Parameter(torch.rand(1, 6, 1, 1) - 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).clamp(min=self.bound)
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


def test_a_convolution_with_computed_groups_is_refused_by_its_node() -> None:
    told = r"node conv2d_1: its number of groups is computed from the batch.*[[]backbone[]] cut"
    with pytest.raises(UnsupportedGraphError, match=told):
        slim_network(domain_net(DynamicConv()))


def test_a_node_that_cannot_be_sliced_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("prunion.exporter.slim.graph._fix_groups", fails)
    told = "node conv2d: prunion cannot slice conv2d as it is used there .AssertionError."
    with pytest.raises(UnsupportedGraphError, match=told):
        slim_network(domain_net(Plain()))


def test_a_bound_that_is_a_tensor_is_told_in_words() -> None:
    notes = "; ".join(domain_net(LearnedBound()).units.notes())
    assert "a bound of it is a tensor: torch.maximum and torch.minimum are followed" in notes


class Spectrum(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.fft.fft2(self.bn1(self.conv1(x)).relu()).abs()
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


class Warped(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = nn.functional.grid_sample(x, x[:, :2].permute(0, 2, 3, 1), align_corners=False)
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


@pytest.mark.parametrize(
    ("net", "node"), [(Spectrum, "_fft_c2c"), (Warped, "grid_sampler")], ids=["fft", "grid"]
)
def test_what_no_bundle_may_hold_is_told_by_the_networks_own_name(
    net: type[Plain], node: str
) -> None:
    """ONNX's name and number said nothing of where in the network that is."""
    told = rf"node '{node}' is a '\w+', which no bundle's graph may hold: end the backbone before"
    with pytest.raises(UnsupportedGraphError, match=told):
        rehearse_export(domain_net(net()), 8, 8)

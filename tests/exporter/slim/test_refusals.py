"""What cannot be sliced is refused in one line: which node, why, what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

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
    """A part of what is computed is overwritten."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x[:, 2:5].mul_(3.0)
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

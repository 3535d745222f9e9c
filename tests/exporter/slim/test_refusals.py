"""What cannot be sliced is refused in one line: which node, why, what to do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunion.runtime.errors import UnsupportedGraphError
from tests.trainer.nets import Plain, domain_net


class LayerNorm(Plain):
    """ConvNeXt's normalisation."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.norm(self.conv1(x).permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


class ClassToken(Plain):
    """ViT's first token is made of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.randn(1, 6, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).flatten(2)
        return torch.cat([self.token.expand(x.shape[0], -1, -1), x], 2).mean(2)


class WrittenInParts(Plain):
    """Swin fills its attention mask part by part."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        mask = x.new_zeros(8, 8)
        mask[2:5].fill_(3.0)
        return (x + mask).mean((2, 3))


class Attention(Plain):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).flatten(2)
        return nn.functional.scaled_dot_product_attention(x, x, x).mean(2)


REASONS = {
    LayerNorm: ("node layer_norm: ", "normalises over the channels", "choose another backbone"),
    ClassToken: ("node expand: ", "computes with token alone", "choose a convolutional backbone"),
    WrittenInParts: ("node fill_: ", "writes into a part of another tensor", "torch.where"),
    Attention: (
        "node scaled_dot_product_attention: ",
        "attention multiplies tokens",
        "choose another backbone",
    ),
}


@pytest.mark.parametrize("model", REASONS)
def test_a_refusal_names_the_node_the_reason_and_the_way_out(model: type[nn.Module]) -> None:
    with pytest.raises(UnsupportedGraphError) as caught:
        domain_net(model())
    message = str(caught.value)
    start, reason, fix = REASONS[model]
    assert message.startswith(start) and reason in message and fix in message
    assert "`keep` cannot help" in message and "\n" not in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("convnext_tiny", "node layer_norm: .* normalises over the channels"),
        ("vit_b_16", "node expand: .* computes with class_token alone"),
        ("swin_t", "node fill_: fill_ writes into a part of another tensor"),
    ],
)
def test_transformers_are_refused_with_a_clear_line(name: str, reason: str) -> None:
    from torchvision.models import get_model

    from prunion.trainer.backbone import trace
    from prunion.trainer.network import DomainNet

    with pytest.raises(UnsupportedGraphError, match=reason):
        DomainNet(trace(get_model(name, weights=None), 224, 224), [3])

"""Which adapters one graph of all domains can hold, and the sliced network with them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from prunion.exporter.bundle.own_weights import apart
from prunion.exporter.slim import slim_network
from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.config import TrainConfig
from prunion.trainer.cost import tabled_adapters
from prunion.trainer.network import DomainNet, adapt_network, finish_weights
from tests.support.networks.small import Residual, domain_net


class Unlike(nn.Module):
    """A first convolution with a bias, a second one without padding."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 6, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(6)
        self.conv2 = nn.Conv2d(6, 8, 3, stride=2)
        self.bn2 = nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.bn2(self.conv2(x)).relu().mean((2, 3))


def adapted(block: nn.Module, train: TrainConfig) -> DomainNet:
    torch.manual_seed(0)
    net = domain_net(block, (3, 4))
    adapt_network(net, train)
    assert net.adapter is not None
    with torch.no_grad():
        for value in net.parameters():
            if value.requires_grad:
                value.add_(0.3 * torch.randn_like(value))
    finish_weights(net.eval())
    return net


@pytest.mark.parametrize("method", ["series", "parallel"])
def test_what_does_not_fit_stands_apart(method: str) -> None:
    net = adapted(Unlike(), TrainConfig(method=method))  # type: ignore[arg-type]
    assert not tabled_adapters(net)
    assert apart(net)
    assert not slim_network(net).adapter_entries
    ranked = adapted(Unlike(), TrainConfig(adapter_rank=2))
    assert set(tabled_adapters(ranked)) == {"conv1.weight"}


def test_what_stands_behind_needs_all_channels() -> None:
    net = adapted(Residual(), TrainConfig(method="series"))
    images, rows = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 1, 0, 1])
    with torch.no_grad():
        expected, got = net.logits(images, rows), slim_network(net).logits(images, rows)
    own = torch.isfinite(expected)
    torch.testing.assert_close(got[own], expected[own], rtol=1e-4, atol=1e-5)
    net.switches[:, ::3] = 0
    with pytest.raises(UnsupportedGraphError, match="need all of its channels"):
        slim_network(net)


@pytest.mark.parametrize(
    "train",
    [
        TrainConfig(method="parallel"),
        TrainConfig(adapter_rank=2),
        TrainConfig(method="parallel", sites="second"),
    ],
    ids=lambda train: f"{train.method}-{train.adapter_rank}-{train.sites}",
)
def test_the_sliced_network_answers_as_the_masked_one(train: TrainConfig) -> None:
    """Batches mix domains, and channels are cut out of both sides of the matrices."""
    net = adapted(Residual(), train)
    draws = torch.rand(net.switches.shape, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        net.switches.copy_(draws < 0.7)
        net.switches[:, ::3] = 0  # nobody's
        images, rows = torch.randn(5, 3, 8, 8), torch.tensor([0, 1, 1, 0, 1])
        expected = net.logits(images, rows)
        slim = slim_network(net)
        got = slim.logits(images, rows)
    own = torch.isfinite(expected)
    torch.testing.assert_close(got[own], expected[own], rtol=1e-4, atol=1e-5)
    entries = slim.adapter_entries
    assert len(entries) == len(tabled_adapters(net)) == (1 if train.sites == "second" else 3)
    whole = [net.trunk.get_parameter(entry.weight).shape for entry in entries]
    assert any(e.outputs < shape[0] for e, shape in zip(entries, whole, strict=True))
    assert slim.adapters.shape == (2, sum(entry.size for entry in entries))

"""Folds that change an answer are told, whatever method they are of."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import fx, nn

from prunion.runtime.errors import ConfigError, VerificationError
from prunion.trainer.config import METHODS, TrainConfig
from prunion.trainer.methods import SeriesSite, fold_series
from prunion.trainer.network import (
    DomainNet,
    adapt_network,
    build,
    fill_trunk,
    finish_weights,
    merge_weights,
)
from tests.support.networks.small import Plain, Residual, domain_net

ALONE: list[dict[str, Any]] = [
    *({"method": x} for x, t in METHODS.items() if t.own_weights and x != "finetune"),
    {"granularity": "slice"},
    {"adapter_rank": 2},
]


class SharedNorm(Plain):
    """The second BatchNorm stands behind two convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv3 = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu()
        return self.bn2(self.conv3(x)).relu().mean((2, 3))


def adapted(model: nn.Module, classes: tuple[int, ...], **train: Any) -> DomainNet:
    """A network whose domains have learned something."""
    net = domain_net(model, classes)
    adapt_network(net, TrainConfig(**train))
    assert net.adapter is not None
    sites = [m for m in net.modules() if isinstance(m, SeriesSite)]
    torch.manual_seed(2)
    with torch.no_grad():
        for value in (p for m in sites or [net.adapter] for p in m.parameters()):
            value.add_(0.1 * torch.randn_like(value))
        for site in sites:
            site.running_mean.normal_()
    return net


def features(net: DomainNet) -> torch.Tensor:
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return torch.cat([net.eval().features(image, [(d, 1)])[0] for d in range(2)])


def test_a_norm_at_several_places_takes_up_no_shift() -> None:
    """It has one mean for all of them: what would be folded there is left without an adapter."""
    net = adapted(SharedNorm(), (3, 4), method="series")
    assert net.adapter is not None and net.adapter.names == ("conv1.weight",)
    before = features(net)
    finish_weights(net)
    torch.testing.assert_close(features(net), before, rtol=1e-4, atol=1e-5)


def test_norms_that_all_stand_at_several_places_are_refused() -> None:
    class Everywhere(SharedNorm):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.bn2(nn.functional.pad(self.conv1(x), (0, 0, 0, 0, 0, 2))).relu()
            x = self.bn2(self.conv3(x)).relu()
            return self.bn2(self.conv3(x)).relu().mean((2, 3))

    with pytest.raises(ConfigError, match=r"has a BatchNorm of its own right behind it"):
        adapted(Everywhere(), (3, 4), method="series")


def test_a_series_fold_that_goes_wrong_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(trunk: fx.GraphModule) -> Any:
        """Without the shifts that BatchNorms take up."""
        before = {name: value.clone() for name, value in trunk.named_buffers()}
        found = fold_series(trunk)
        for name, value in trunk.named_buffers():
            value.copy_(before[name])
        return found

    monkeypatch.setattr(build, "fold_series", forgetful)
    net = adapted(Residual(), (3, 4), method="series")
    with pytest.raises(VerificationError, match=r"place of adapters changed what domain 1 of 2"):
        finish_weights(net)


@pytest.mark.parametrize("train", ALONE, ids=lambda x: "-".join(map(str, x.values())))
def test_an_only_domains_weights_that_go_astray_are_told(
    train: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    merge_weights(adapted(Residual(), (3,), **train))  # as it should be
    net = adapted(Residual(), (3,), **train)
    finish_weights(net)
    own = DomainNet.own_weights

    calls: list[int] = []

    def astray(self: DomainNet, domain: int) -> dict[str, torch.Tensor]:
        """The second call is of the weights that are put in place."""
        calls.append(domain)
        made = own(self, domain)
        return {n: 2 * w for n, w in made.items()} if len(calls) == 2 else made

    monkeypatch.setattr(DomainNet, "own_weights", astray)
    with pytest.raises(VerificationError, match=r"place of the trunk's changed what domain 1 of 1"):
        merge_weights(net)


@pytest.mark.parametrize("train", [{"method": "packnet"}, {"granularity": "slice"}])
def test_a_filled_trunk_that_lost_something_is_told(
    train: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    net = adapted(Residual(), (3, 4), **train)
    before = features(net)
    fill_trunk(net)
    assert torch.equal(features(net), before)
    kind = type(net.adapter)
    if train.get("method") == "packnet":  # whose own weights never read the trunk's
        monkeypatch.setattr(
            kind, "weights", lambda self, shared, domain: {n: shared[n] for n in self.names}
        )
    monkeypatch.setattr(
        kind, "base", lambda self, shared: {n: torch.zeros_like(w) for n, w in shared.items()}
    )
    with pytest.raises(VerificationError, match=r"place of the trunk's weights changed what"):
        fill_trunk(net)

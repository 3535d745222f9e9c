"""A network in hand is copied, or refused: what only looks like a copy learns nothing of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

from prunion.runtime.errors import ConfigError
from prunion.trainer.backbone import load_backbone
from prunion.trainer.backbone.copying import own_copy
from prunion.trainer.config import BackboneConfig


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU())
        self.fc = nn.Linear(8, 5)
        self.kept: list[torch.Tensor] = []

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.body(self.stem(x)).mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.features(x))


def patched() -> nn.Module:
    net = Net()
    net.forward = lambda x: net.fc(net.features(x))  # type: ignore[method-assign]
    return net


def part_of_it() -> nn.Module:
    net = Net()
    run, net.features = net.features, lambda x: run(x)  # type: ignore[method-assign]
    return net


class Skips(Net):
    def features(self, x: torch.Tensor) -> torch.Tensor:
        y = super().features(x)
        return y + self.skip.mean((2, 3))  # type: ignore[operator]


def kept_by_a_hook() -> nn.Module:
    net = Skips()
    net.stem.register_forward_hook(lambda module, x, y: setattr(net, "skip", y))
    with torch.no_grad():
        net.eval()(torch.zeros(1, 3, 12, 12))
    return net


def listed_by_a_hook() -> nn.Module:
    net = Net()
    net.stem.register_forward_hook(lambda module, x, y: net.kept.append(y))
    return net


def counted_by_a_hook() -> nn.Module:
    net = Net()
    net.calls = 0  # type: ignore[assignment]
    net.stem.register_forward_hook(lambda module, x, y: setattr(net, "calls", net.calls + 1))
    return net


class Stale(Net):
    """Reads what is told apart from any module's attributes: by the object that it is."""

    seen: ClassVar[dict[int, torch.Tensor]] = {}

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return super().features(x) * self.seen.get(id(self), torch.ones(1))


def by_what_it_is() -> nn.Module:
    net = Stale()
    Stale.seen[id(net)] = torch.tensor([3.0])
    return net


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (patched, r"its copy computes with stem.0.weight of the network: a lambda, a closure"),
        (part_of_it, "its copy computes with stem.0.weight of the network"),
        (kept_by_a_hook, "its copy sets skip of the network"),
        (listed_by_a_hook, "its copy sets kept of the network"),
        (counted_by_a_hook, r"its copy sets calls of the network: a hook, .* Remove the hook, or"),
        (by_what_it_is, "cannot be copied: its copy answers otherwise"),
    ],
)
def test_a_copy_that_is_still_the_network_is_refused(
    make: Callable[[], nn.Module], message: str
) -> None:
    """Its graph was held to that copy, which was as wrong: constants learned nothing."""
    net = make()
    buffers = {k: v.clone() for k, v in net.named_buffers()}
    held = {k: list(v) if k == "kept" else v for k, v in vars(net).items()}
    with pytest.raises(ConfigError, match=message) as caught:
        load_backbone(BackboneConfig("own:net", "python"), 12, 12, model=net)
    assert "\n" not in str(caught.value)
    assert all(torch.equal(v, buffers[k]) for k, v in net.named_buffers())
    assert [m.training for m in net.modules()] == [held["training"]] * len(list(net.modules()))
    assert vars(net).keys() == held.keys() and vars(net)["kept"] == held["kept"]
    assert vars(net).get("skip") is held.get("skip")


class Hides(Net):
    def __init__(self) -> None:
        super().__init__()
        self.layers = [nn.Conv2d(8, 8, 1)]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return F.relu(self.layers[0](self.body(self.stem(x)))).mean((2, 3))


def test_layers_in_a_plain_list_are_refused_unless_they_are_frozen() -> None:
    """They were constants of the graph, which learn nothing."""
    net, config = Hides(), BackboneConfig("own:net", "python")
    with pytest.raises(ConfigError, match=r"of shape \[8, 8, 1, 1\] that is not among.*ModuleList"):
        load_backbone(config, 12, 12, model=net)
    net.layers[0].requires_grad_(False)
    trunk = load_backbone(config, 12, 12, model=net).eval()
    images = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(trunk(images), net.eval().features(images))


def test_a_hook_that_uses_its_module_is_copied_with_it() -> None:
    class Fine(Net):
        def features(self, x: torch.Tensor) -> torch.Tensor:
            y = self.body(self.stem(x))
            return y.mean((2, 3)) + self.stem.kept.mean((2, 3))  # type: ignore[operator]

    def keep(module: nn.Module, inputs: object, output: torch.Tensor) -> None:
        module.kept = output

    net = Fine()
    net.stem.register_forward_hook(keep)
    trunk = load_backbone(BackboneConfig("own:net", "python"), 12, 12, model=net).eval()
    assert not hasattr(net.stem, "kept")
    images = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(trunk(images), net.eval().features(images))


class Passes(nn.Module):
    """A wrapper as users write them."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: torch.Tensor, **options: object) -> torch.Tensor:
        return self.inner(*args, **options)


@pytest.mark.parametrize(
    ("wrap", "prefix"),
    [(nn.DataParallel, ""), (AveragedModel, ""), (torch.compile, ""), (Passes, "inner.")],
)
def test_a_wrapped_network_is_taken(wrap: Callable[[nn.Module], nn.Module], prefix: str) -> None:
    """It was refused with what torch says of the structure of its inputs."""
    net = Net().eval()
    trunk = load_backbone(BackboneConfig("own:net", "python"), 12, 12, model=wrap(net)).eval()
    images = torch.randn(3, 3, 12, 12)
    torch.testing.assert_close(trunk(images), net.features(images))
    assert f"{prefix}stem.0.weight" in trunk.state_dict()


class Doubles(nn.DataParallel):
    """More than a wrapper."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


class Behind(nn.Module):
    """Calls a network by the name that torch.compile has for it."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self._orig_mod = net

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self._orig_mod(x)


@pytest.mark.parametrize("wrap", [Doubles, Behind])
def test_what_does_more_than_to_wrap_is_taken_whole(
    wrap: Callable[[nn.Module], nn.Module],
) -> None:
    """The network inside was taken in its place, without what the wrapper adds."""
    own = own_copy(wrap(Net()), 12, 12)
    assert isinstance(own, wrap)


def with_a_scripted_part() -> nn.Module:
    net = Net()
    net.body = torch.jit.script(net.body)
    return net


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: torch.jit.script(Net().stem), "scripted or traced by torch.jit, .*as it was bef"),
        (with_a_scripted_part, "scripted or traced by torch.jit in its module body"),
        (lambda: nn.Sequential(nn.LazyConv2d(8, 3)), "no size yet for 0.weight, .*: run it once"),
    ],
)
def test_what_cannot_be_copied_yet_or_again_is_told(
    make: Callable[[], nn.Module], told: str
) -> None:
    """It was told in torch's words, of a TS2EPConverter and of a function's address."""
    with pytest.raises(ConfigError, match=told):
        load_backbone(BackboneConfig("own:net", "python"), 12, 12, model=make())

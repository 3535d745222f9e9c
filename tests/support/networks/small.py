"""Small networks whose channels are easy to follow by eye."""

from __future__ import annotations

import copy
import functools

import torch
from torch import fx, nn

from prunion.trainer.backbone import trace
from prunion.trainer.network import DomainNet

__all__ = ["Depthwise", "Plain", "Residual", "SqueezeExcite", "domain_net", "shuffle_norms"]

# Their networks take no arguments, and draw nothing but parameters.
TRACED_ONCE = (__name__, "tests.exporter.slim.test_network")


class Plain(nn.Module):
    """conv–BN–ReLU twice."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu()
        x = self.bn2(self.conv2(x)).relu_()
        return x.mean((2, 3))


class Residual(Plain):
    """A stem and one residual block with a projection-free shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.conv2, self.bn2 = nn.Conv2d(6, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv3, self.bn3 = nn.Conv2d(8, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.bn1(self.conv1(x)).relu_()
        y = self.bn2(self.conv2(x)).relu_()
        y = self.bn3(self.conv3(y))
        y += x
        return nn.functional.adaptive_avg_pool2d(y.relu_(), 1).flatten(1)


class Depthwise(nn.Module):
    """An inverted bottleneck: expand, depthwise, project, add."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.bn0 = nn.Conv2d(3, 4, 3, 2, 1, bias=False), nn.BatchNorm2d(4)
        self.expand, self.bn1 = nn.Conv2d(4, 12, 1, bias=False), nn.BatchNorm2d(12)
        self.depth = nn.Conv2d(12, 12, 3, padding=1, groups=12, bias=False)
        self.bn2 = nn.BatchNorm2d(12)
        self.project, self.bn3 = nn.Conv2d(12, 4, 1, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.relu6(self.bn0(self.stem(x)))
        y = nn.functional.relu6(self.bn1(self.expand(x)))
        y = nn.functional.relu6(self.bn2(self.depth(y)))
        return (x + self.bn3(self.project(y))).mean((2, 3))


class SqueezeExcite(nn.Module):
    """A gate computed from its own channels, through layers with biases and no BatchNorm."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.down, self.up = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = nn.functional.silu(self.bn(self.conv(x)))
        gate = self.down(nn.functional.adaptive_avg_pool2d(x, 1)).relu()
        return (x * self.up(gate).sigmoid()).mean((2, 3))


def domain_net(model: nn.Module, classes: tuple[int, ...] = (3, 5), size: int = 8) -> DomainNet:
    """A masked network over `model`, every domain with statistics of its own."""
    torch.manual_seed(0)
    net = DomainNet(_traced(model, size), classes)
    shuffle_norms(net)
    return net.eval()


def _traced(model: nn.Module, size: int) -> fx.GraphModule:
    """`trace` after a seed of 0; each kind of `TRACED_ONCE` is traced once."""
    kind, state = type(model), model.eval().state_dict()
    if kind.__module__ not in TRACED_ONCE or "<locals>" in kind.__qualname__:
        return trace(model, size, size)
    first, shapes = _first(kind, size)
    if {name: value.shape for name, value in state.items()} != shapes:  # it was given a bias
        torch.manual_seed(0)
        return trace(model, size, size)
    module = copy.deepcopy(first)
    module.load_state_dict({name: state[name] for name in module.state_dict()})
    torch.manual_seed(0)
    torch.randn(2, 3, size, size)  # as `trace` does
    return module


@functools.cache
def _first(kind: type[nn.Module], size: int) -> tuple[fx.GraphModule, dict[str, torch.Size]]:
    model = kind()
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    return trace(model, size, size), shapes


def shuffle_norms(net: DomainNet) -> None:
    """Make the domains' BatchNorms differ, shifts well away from zero."""
    with torch.no_grad():
        for norm in net.norms.values():
            norm.weight.mul_(1 + 0.3 * torch.randn_like(norm.weight))
            norm.bias.add_(0.5 * torch.randn_like(norm.bias))
            norm.running_mean.add_(0.2 * torch.randn_like(norm.running_mean))
            norm.running_var.mul_(1 + torch.rand_like(norm.running_var))

"""Random small convolutional networks, drawn step by step with hypothesis."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

__all__ = ["RandomNet", "networks"]

SIDE = 8
ACTIVATIONS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "none": lambda x: x,
    "relu": torch.relu,
    "relu_": lambda x: F.relu(x, inplace=True),  # always on a tensor just made
    "relu6": F.relu6,
    "leaky_relu": F.leaky_relu,
    "silu": F.silu,
    "gelu": F.gelu,
    "hardswish": F.hardswish,
    "elu": F.elu,
    "tanh": torch.tanh,
    "sigmoid": torch.sigmoid,
    "softplus": F.softplus,
    "clamp": lambda x: x.clamp(0.1, 2.0),
    "plus_one": lambda x: x + 1.0,
    "halved": lambda x: x / 2 * 0.9,
}
Step = tuple[Any, ...]


@dataclass
class Shape:
    """What the drawing knows of the map so far, and of the maps it may come back to."""

    channels: int
    side: int
    earlier: list[tuple[int, int]]


class Conv(nn.Module):
    """Convolution, then BatchNorm or a bias or both or neither, then an activation."""

    def __init__(self, inputs: int, step: Step) -> None:
        super().__init__()
        outputs, kernel, groups, norm, act, stride = step
        bias = norm in ("bias", "both")
        self.conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, 1, groups, bias)
        self.bn = nn.BatchNorm2d(outputs) if norm in ("bn", "both") else nn.Identity()
        self.act = ACTIVATIONS[act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.bn(self.conv(x)))


class RandomNet(nn.Module):
    """Runs a drawn list of steps; every step's input may be read again by a later one."""

    def __init__(self, steps: list[Step], end: Step) -> None:
        super().__init__()
        self.steps, self.end = steps, end
        self.parts = nn.ModuleDict()
        self.scales = nn.ParameterDict()
        channels = 3
        widths = []
        for place, step in enumerate(steps):
            widths.append(channels)
            channels = self._build(str(place), step, channels, widths)
        kind, hidden = end
        self.features = channels
        if hidden:
            self.parts["hidden"] = nn.Linear(self._flat(kind), hidden)

    def _flat(self, kind: str) -> int:
        if kind != "flatten":
            return self.features
        with torch.no_grad():
            return self._trunk(torch.zeros(2, 3, SIDE, SIDE)).flatten(1).shape[1]

    def _build(self, name: str, step: Step, channels: int, widths: list[int]) -> int:
        """Make the modules of one step; returns the channels it gives."""
        kind = step[0]
        if kind in ("conv", "join"):
            self.parts[name] = Conv(channels + (widths[step[1]] if kind == "join" else 0), step[-1])
            return int(step[-1][0])
        if kind in ("residual", "twice", "product", "zero_pad", "zero_cat"):
            self.parts[name] = Conv(channels, step[-1])
            return int(step[-1][0])
        if kind == "again":
            self.parts[name] = Conv(widths[step[1]], step[-1])
        elif kind == "preact":
            self.parts[name + "n"], self.parts[name] = (
                nn.BatchNorm2d(channels),
                Conv(channels, step[-1]),
            )
        elif kind == "gate":
            self.parts[name + "d"] = nn.Conv2d(channels, step[1], 1)
            self.parts[name + "u"] = nn.Conv2d(step[1], channels, 1)
        elif kind == "split":
            self.parts[name] = Conv(channels // step[1], step[-1])
        elif kind == "scale":
            self.scales[name] = nn.Parameter(torch.randn(channels, 1, 1))
        elif kind == "norm":
            self.parts[name] = nn.BatchNorm2d(channels)
        return channels

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self._trunk(x)
        kind, hidden = self.end
        if kind == "mean":
            x = x.mean((2, 3))
        elif kind == "pool":
            x = F.adaptive_avg_pool2d(x, 1).flatten(1)
        else:
            x = x.flatten(1)
        return self.parts["hidden"](x).relu() if hidden else x

    def _trunk(self, x: torch.Tensor) -> torch.Tensor:
        seen = []
        for place, step in enumerate(self.steps):
            seen.append(x)
            x = getattr(self, f"_{step[0]}")(str(place), step, x, seen)
        return x

    def _conv(self, name: str, step: Step, x: torch.Tensor, seen: list[torch.Tensor]) -> Any:
        return self.parts[name](x)

    def _norm(self, name: str, step: Step, x: torch.Tensor, seen: list[torch.Tensor]) -> Any:
        return ACTIVATIONS[step[1]](self.parts[name](x))

    def _residual(self, name: str, step: Step, x: torch.Tensor, seen: list[torch.Tensor]) -> Any:
        return ACTIVATIONS[step[1]](x + self.parts[name](x))

    def _twice(self, name: str, step: Step, x: torch.Tensor, seen: list[torch.Tensor]) -> Any:
        return self.parts[name](self.parts[name](x))

    def _product(self, name: str, step: Step, x: torch.Tensor, seen: list[torch.Tensor]) -> Any:
        return x * self.parts[name](x)

    def _preact(self, name: str, step: Step, x: torch.Tensor, seen: list[torch.Tensor]) -> Any:
        return x + self.parts[name](ACTIVATIONS[step[1]](self.parts[name + "n"](x)))

    def _again(self, name: str, step: Step, x: torch.Tensor, seen: list[torch.Tensor]) -> Any:
        return x - self.parts[name](seen[step[1]])

    def _join(self, name: str, step: Step, x: torch.Tensor, seen: list[torch.Tensor]) -> Any:
        return self.parts[name](torch.cat([x, seen[step[1]]], 1))

    def _split(self, name: str, step: Step, x: torch.Tensor, seen: list[torch.Tensor]) -> Any:
        """Parts of equal width; one goes through a convolution and all come back reordered."""
        parts = list(x.chunk(step[1], 1))
        parts[step[2]] = self.parts[name](parts[step[2]])
        return torch.cat(parts[1:] + parts[:1], 1)

    def _shuffle(self, name: str, step: Step, x: torch.Tensor, seen: list[torch.Tensor]) -> Any:
        n, c, h, w = x.shape
        return x.view(n, step[1], c // step[1], h, w).transpose(1, 2).reshape(n, c, h, w)

    def _pool(self, name: str, step: Step, x: torch.Tensor, seen: list[torch.Tensor]) -> Any:
        return F.max_pool2d(x, 3, 2, 1) if step[1] == "max" else F.avg_pool2d(x, 2)

    def _gate(self, name: str, step: Step, x: torch.Tensor, seen: list[torch.Tensor]) -> Any:
        y = self.parts[name + "d"](x.mean((2, 3), keepdim=True)).relu()
        y = self.parts[name + "u"](y)
        return x * (y.sigmoid() if step[2] == "sigmoid" else F.hardsigmoid(y))

    def _scale(self, name: str, step: Step, x: torch.Tensor, seen: list[torch.Tensor]) -> Any:
        return x * self.scales[name] if step[1] == "mul" else x + self.scales[name]

    def _zero_pad(self, name: str, step: Step, x: torch.Tensor, seen: list[torch.Tensor]) -> Any:
        y = self.parts[name](x)
        return torch.relu(y + F.pad(x, (0, 0, 0, 0, step[1], step[2])))

    def _zero_cat(self, name: str, step: Step, x: torch.Tensor, seen: list[torch.Tensor]) -> Any:
        y = self.parts[name](x)
        return torch.relu(y + torch.cat([x, x * 0], 1))


@st.composite
def networks(draw: st.DrawFn, most_steps: int = 7) -> RandomNet:
    """A network of a stem and up to `most_steps` steps on 8×8 images."""
    width = draw(st.sampled_from([4, 6, 8, 12]))
    steps: list[Step] = [("conv", (width, 3, 1, *draw(NORM_ACT), draw(st.sampled_from([1, 2]))))]
    shape = Shape(width, SIDE // steps[0][-1][-1], [(3, SIDE)])
    for _ in range(draw(st.integers(1, most_steps))):
        shape.earlier.append((shape.channels, shape.side))
        steps.append(_step(draw, shape))
        steps[-1] = _settled(steps[-1], shape)
    end = draw(st.sampled_from(["mean", "pool", "flatten"]))
    return RandomNet(steps, (end, draw(st.sampled_from([0, 0, 5, 9]))))


NORM_ACT = st.tuples(
    st.sampled_from(["bn", "bn", "bn", "bias", "both", "none"]),
    st.sampled_from([*["relu"] * 4, *ACTIVATIONS]),
)


def _conv_step(draw: st.DrawFn, inputs: int, outputs: int, stride: int = 1) -> Step:
    """Ordinary, grouped or depthwise, whatever the widths allow."""
    shared = [g for g in range(1, inputs + 1) if inputs % g == 0 and outputs % g == 0]
    groups = draw(st.sampled_from([1, 1, 1, *shared]))
    return (outputs, draw(st.sampled_from([1, 3])), groups, *draw(NORM_ACT), stride)


def _step(draw: st.DrawFn, shape: Shape) -> Step:
    channels, activation = shape.channels, draw(st.sampled_from(["relu", *ACTIVATIONS]))
    divisors = [d for d in (2, 3, 4) if channels % d == 0]
    same = [i for i, (_, side) in enumerate(shape.earlier) if side == shape.side]
    kinds = ["conv", "conv", "residual", "preact", "gate", "scale", "norm", "zero_pad"]
    kinds += ["twice", "product"]
    kinds += ["join", "again"] if same else []
    kinds += ["split", "shuffle"] if divisors else []
    kinds += ["pool"] if shape.side >= 4 else []
    kinds += ["zero_cat"] if channels <= 12 else []
    kind = draw(st.sampled_from(kinds))
    wide = draw(st.sampled_from([4, 6, 8, 12, channels, 2 * channels if channels <= 8 else 6]))
    if kind == "conv":
        return ("conv", _conv_step(draw, channels, wide, draw(st.sampled_from([1, 1, 2]))))
    if kind in ("residual", "preact", "twice", "product"):
        return (kind, activation, _conv_step(draw, channels, channels))
    if kind == "gate":
        return (kind, draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from(["sigmoid", "hard"])))
    if kind == "scale":
        return (kind, draw(st.sampled_from(["mul", "add"])))
    if kind == "norm":
        return (kind, activation)
    if kind == "zero_pad":
        before, after = draw(st.integers(0, 3)), draw(st.integers(0, 3))
        return (kind, before, after, _conv_step(draw, channels, channels + before + after))
    if kind == "zero_cat":
        return (kind, _conv_step(draw, channels, 2 * channels))
    if kind == "pool":
        return (kind, draw(st.sampled_from(["max", "avg"])))
    if kind in ("join", "again"):
        place = draw(st.sampled_from(same))
        inputs = shape.earlier[place][0]
        if kind == "join":
            return (kind, place, _conv_step(draw, channels + inputs, wide))
        return (kind, place, _conv_step(draw, inputs, channels))
    count = draw(st.sampled_from(divisors))
    if kind == "shuffle":
        return (kind, count)
    own = channels // count
    return (kind, count, draw(st.integers(0, count - 1)), _conv_step(draw, own, own))


def _settled(step: Step, shape: Shape) -> Step:
    """Follow what a step does to the map's shape."""
    if step[0] in ("conv", "join", "zero_pad", "zero_cat"):
        shape.channels = step[-1][0]
    if step[0] == "conv":
        shape.side = -(-shape.side // step[-1][-1])
    elif step[0] == "pool":
        shape.side = -(-shape.side // 2) if step[1] == "max" else shape.side // 2
    return step

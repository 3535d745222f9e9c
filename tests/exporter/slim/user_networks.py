"""Small networks as users write them, one trick each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

__all__ = ["BLOCKS", "EXACT", "WHOLE", "Trick"]

WIDTH = 8  # channels in front of the trick, on a map of 8×8
Forward = Callable[[Any, torch.Tensor], torch.Tensor]


class Trick(nn.Module):
    """conv–BN–ReLU, the trick, conv–BN–ReLU, pool."""

    def __init__(self, forward: Forward, out: int = WIDTH, end: bool = True, **parts: Any) -> None:
        """`out`: channels behind the trick; `end`: False where it gives the features itself."""
        super().__init__()
        self.stem = conv_bn(3, WIDTH)
        self.trick, self.end = forward, end
        for name, part in parts.items():
            setattr(self, name, part)
        self.last = conv_bn(out, 6) if end else nn.Identity()

    def forward(self, x: torch.Tensor) -> Any:
        y = self.trick(self, self.stem(x))
        return self.last(y).mean((2, 3)) if self.end else y


def conv_bn(a: int, b: int, k: int = 3, **options: Any) -> nn.Sequential:
    norm = nn.BatchNorm2d(b)
    return nn.Sequential(nn.Conv2d(a, b, k, padding=k // 2, bias=False, **options), norm, nn.ReLU())


def bare(**options: Any) -> nn.Conv2d:
    return nn.Conv2d(WIDTH, WIDTH, 3, padding=1, **options)


class FrozenBatchNorm(nn.Module):
    """Detection's: an affine of buffers."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("weight", "bias", "running_mean", "running_var"):
            self.register_buffer(name, torch.rand(WIDTH) + 0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale = (self.weight * (self.running_var + 1e-5).rsqrt()).reshape(1, -1, 1, 1)
        shift = self.bias.reshape(1, -1, 1, 1) - self.running_mean.reshape(1, -1, 1, 1) * scale
        return x * scale + shift


class StandardisedConv(nn.Conv2d):
    """BiT's weights: mean 0, deviation 1 for each filter."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        w = self.weight
        mean, std = w.mean((1, 2, 3), keepdim=True), w.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, (w - mean) / (std + 1e-5), self.bias, padding=1)


class BatchNormStandardisedConv(nn.Conv2d):
    """timm's way to the same."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        weight = F.batch_norm(self.weight.reshape(1, WIDTH, -1), None, None, training=True)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias, padding=1)


class SqueezeExcite(nn.Module):
    """`form`: how the gate gets the map's shape."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.fc = nn.Sequential(nn.Linear(WIDTH, 4), nn.ReLU(), nn.Linear(4, WIDTH), nn.Sigmoid())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        n, c, h, w = x.shape
        y = self.fc(F.adaptive_avg_pool2d(x, 1).view(n, c))
        if self.form == "expand_as":
            return x * y.view(n, c, 1, 1).expand_as(x)
        if self.form == "expand":
            return x * y.view(n, c, 1, 1).expand(-1, -1, h, w)
        if self.form == "expand sizes":
            return x * y.view(n, c, 1, 1).expand(n, c, h, w)
        if self.form == "None":
            return x * y[:, :, None, None]
        if self.form == "1 - y":
            return x * (1 - y).reshape(n, c, 1, 1)
        return torch.mul(y.unsqueeze(2).unsqueeze(3), x)


class Eca(nn.Module):
    """A convolution along the channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(1, 1, 3, padding=1, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.conv(x.mean((2, 3)).unsqueeze(1)).transpose(1, 2).unsqueeze(-1)
        return x * y.sigmoid().expand_as(x)


class Mixer(nn.Module):
    """ConvNeXt's block: depthwise, LayerNorm over channels, two linear layers, LayerScale."""

    def __init__(self, response: bool = False) -> None:
        super().__init__()
        self.depth = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, groups=WIDTH)
        self.norm, self.response = nn.LayerNorm(WIDTH), response
        self.up, self.down = nn.Linear(WIDTH, 16), nn.Linear(16, WIDTH)
        self.gamma = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = F.gelu(self.up(self.norm(self.depth(x).permute(0, 2, 3, 1))))
        if self.response:
            size = y.norm(p=2, dim=(1, 2), keepdim=True)
            y = y + y * (size / (size.mean(-1, keepdim=True) + 1e-6))
        return x + (self.gamma * self.down(y)).permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Two heads over the map's positions."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.qkv(x.flatten(2).transpose(1, 2)).chunk(3, 2)
        q, k, v = (t.unflatten(2, (2, 4)).transpose(1, 2) for t in (q, k, v))
        y = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + y.transpose(1, 2).reshape(x.shape)


class Cbam(nn.Module):
    """A map of places from the mean and the maximum over channels."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        parts = [x.mean(1, keepdim=True), x.max(1, keepdim=True)[0]]
        return x * self.conv(torch.cat(parts, 1)).sigmoid()


def shuffled(x: torch.Tensor, groups: int) -> torch.Tensor:
    n, c, h, w = x.shape
    return x.view(n, groups, c // groups, h, w).transpose(1, 2).reshape(n, c, h, w)


def to_depth(m: Any, x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    y = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4)
    return y.reshape(n, 4 * c, h // 2, w // 2)


def to_space(m: Any, x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    y = x.view(n, c // 4, 2, 2, h, w).permute(0, 1, 4, 2, 5, 3)
    return y.reshape(n, c // 4, 2 * h, 2 * w)


def split_attention(m: Any, x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    parts = m.conv(x).view(n, 2, c, h, w)
    weights = m.up(m.down(parts.sum(1).mean((2, 3), keepdim=True)).relu())
    weights = weights.view(n, 2, c, 1, 1).softmax(1)
    return (parts * weights).sum(1)


def windows(m: Any, x: torch.Tensor) -> torch.Tensor:
    n, c, h, w = x.shape
    y = x.view(n, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 3, 5, 1).reshape(-1, h * w // 4, c)
    y = m.norm(m.fc(y)).view(n, 2, 2, h // 2, w // 2, c)
    return y.permute(0, 5, 1, 3, 2, 4).reshape(n, c, h, w)


def masked_in_parts(m: Any, x: torch.Tensor) -> torch.Tensor:
    mask = x.new_zeros(8, 8)
    mask[2:5].fill_(3.0)
    return x + mask


def tokens(m: Any, x: torch.Tensor) -> torch.Tensor:
    y = torch.cat([m.token.expand(x.shape[0], -1, -1), x.flatten(2).transpose(1, 2)], 1) + m.places
    y = y + m.down(F.gelu(m.up(m.norm(y))))
    return m.norm(y)[:, 0]


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(*shape) + 0.5)


def net(forward: Forward, out: int = WIDTH, end: bool = True, **parts: Any) -> Any:
    return lambda: Trick(forward, out, end, **{k: v() for k, v in parts.items()})


def linear(a: int = WIDTH, b: int = WIDTH) -> Callable[[], nn.Module]:
    return lambda: nn.Linear(a, b)


def part(module: Callable[[], nn.Module], out: int = WIDTH) -> Any:
    """A module in the trick's place."""
    return net(lambda m, x: m.it(x), out, it=module)


# What becomes of it: exact, whole (some channels are never removed), or why it is refused.
EXACT, WHOLE = "exact", "whole"
BLOCKS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    # --- squeeze and excite ---
    "gate by expand_as": (part(lambda: SqueezeExcite("expand_as")), EXACT),
    "gate by expand(-1, -1, h, w)": (part(lambda: SqueezeExcite("expand")), EXACT),
    "gate by expand(n, c, h, w)": (part(lambda: SqueezeExcite("expand sizes")), EXACT),
    "gate by [:, :, None, None]": (part(lambda: SqueezeExcite("None")), EXACT),
    "gate by unsqueeze": (part(lambda: SqueezeExcite("unsqueeze")), EXACT),
    "gate of 1 - y": (part(lambda: SqueezeExcite("1 - y")), EXACT),
    "gate expanded before a sum": (
        net(lambda m, x: x + m.fc(x.mean((2, 3)))[..., None, None].expand_as(x), fc=linear()),
        EXACT,
    ),
    "efficient channel attention": (part(Eca), WHOLE),
    "map of places, 1 channel": (
        net(lambda m, x: x * m.one(x).sigmoid(), one=lambda: nn.Conv2d(WIDTH, 1, 1)),
        EXACT,
    ),
    "map of places, expanded": (
        net(lambda m, x: x * m.one(x).sigmoid().expand_as(x), one=lambda: nn.Conv2d(WIDTH, 1, 1)),
        EXACT,
    ),
    "map of places, added": (
        net(lambda m, x: x + m.one(x), one=lambda: nn.Conv2d(WIDTH, 1, 1)),
        EXACT,
    ),
    "mean and maximum over channels": (part(Cbam), WHOLE),
    "split attention": (
        net(
            split_attention,
            conv=lambda: conv_bn(WIDTH, 2 * WIDTH, groups=2),
            down=lambda: nn.Conv2d(WIDTH, 4, 1),
            up=lambda: nn.Conv2d(4, 2 * WIDTH, 1),
        ),
        EXACT,
    ),
    # --- pooling ---
    "flatten(2).mean(2)": (net(lambda m, x: x.flatten(2).mean(2), end=False), EXACT),
    "view(n, c, -1).mean(-1)": (
        net(lambda m, x: x.view(x.shape[0], x.shape[1], -1).mean(-1), end=False),
        EXACT,
    ),
    "mean(3).mean(2)": (net(lambda m, x: x.mean(3).mean(2), end=False), EXACT),
    "sum over positions": (net(lambda m, x: x.sum((2, 3)) / 64, end=False), EXACT),
    "amax": (net(lambda m, x: x.amax((2, 3)), end=False), EXACT),
    "max over flat positions": (net(lambda m, x: x.flatten(2).max(2)[0], end=False), EXACT),
    "AdaptiveMaxPool2d(1)": (
        net(lambda m, x: F.adaptive_max_pool2d(x, 1).flatten(1), end=False),
        EXACT,
    ),
    "AdaptiveMaxPool2d(4)": (part(lambda: nn.AdaptiveMaxPool2d(4)), EXACT),
    "AdaptiveAvgPool2d(2), flat": (
        net(lambda m, x: F.adaptive_avg_pool2d(x, 2).flatten(1), end=False),
        EXACT,
    ),
    "generalised mean": (
        net(lambda m, x: x.clamp(min=1e-6).pow(3).mean((2, 3)), end=False),
        EXACT,
    ),
    "mean and maximum joined": (
        net(lambda m, x: torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1), end=False),
        EXACT,
    ),
    "mean plus maximum": (
        net(lambda m, x: 0.5 * (x.mean((2, 3)) + x.amax((2, 3))), end=False),
        EXACT,
    ),
    "max pool, ceil": (part(lambda: nn.MaxPool2d(3, 2, ceil_mode=True)), EXACT),
    "softmax over positions": (
        net(lambda m, x: (x.flatten(2) * x.flatten(2).softmax(2)).sum(2), end=False),
        EXACT,
    ),
    "variance over positions": (net(lambda m, x: x * x.var((2, 3), keepdim=True)), WHOLE),
    "a mean over a spatial concat": (
        net(
            lambda m, x: torch.cat([x, m.a(x)], 2).mean((2, 3)), end=False, a=lambda: conv_bn(8, 8)
        ),
        EXACT,
    ),
    "a convolution over a spatial concat": (
        net(lambda m, x: torch.cat([x, m.a(x)], 3), a=lambda: conv_bn(8, 8)),
        EXACT,
    ),
}

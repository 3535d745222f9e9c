"""More small networks as users write them: layers, arithmetic, reshapes, joins."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from tests.exporter.slim.user_networks import (
    BLOCKS,
    EXACT,
    WHOLE,
    Attention,
    BatchNormStandardisedConv,
    FrozenBatchNorm,
    Mixer,
    StandardisedConv,
    bare,
    conv_bn,
    linear,
    masked_in_parts,
    net,
    parameter,
    part,
    shuffled,
    to_depth,
    to_space,
    tokens,
    windows,
)

__all__ = ["NETWORKS"]

LAYERS: dict[str, tuple[Callable[[], nn.Module], str]] = {
    # --- activations ---
    "PReLU, a slope each": (part(lambda: nn.PReLU(8)), EXACT),
    "PReLU, one slope": (part(nn.PReLU), EXACT),
    "Hardtanh(1, 2)": (part(lambda: nn.Hardtanh(1.0, 2.0)), EXACT),
    "Hardtanh": (part(nn.Hardtanh), EXACT),
    "clamp_min(0.5)": (net(lambda m, x: x.clamp_min(0.5)), EXACT),
    "clamp_max(-0.5)": (net(lambda m, x: x.clamp_max(-0.5)), EXACT),
    "clamp(0, 1)": (net(lambda m, x: x.clamp(0, 1)), EXACT),
    "threshold": (part(lambda: nn.Threshold(0.1, 20.0)), EXACT),
    "x * sigmoid(1.7 x)": (net(lambda m, x: x * torch.sigmoid(1.702 * x)), EXACT),
    "x / (1 + |x|)": (net(lambda m, x: x / (1 + x.abs())), WHOLE),
    "softplus": (part(nn.Softplus), EXACT),
    "glu": (net(lambda m, x: F.glu(x, 1), 4), EXACT),
    "gated halves": (net(lambda m, x: (lambda a, b: a * b)(*x.chunk(2, 1)), 4), EXACT),
    "maxout": (net(lambda m, x: torch.maximum(*x.chunk(2, 1)), 4), EXACT),
    "where(x > 0)": (net(lambda m, x: torch.where(x > 0.2, x, 0.1 * x)), EXACT),
    "where, a number": (net(lambda m, x: torch.where(x > 0.2, x, torch.tensor(1.0))), EXACT),
    "masked_fill": (net(lambda m, x: x.masked_fill(x > 1, 1.0)), EXACT),
    "square": (net(lambda m, x: x**2), EXACT),
    "square root": (net(lambda m, x: (x + 1).sqrt()), WHOLE),
    "1 - x": (net(lambda m, x: 1 - x), EXACT),
    "clamp by sub": (net(lambda m, x: x - x.clamp(max=0.3)), EXACT),
    "casts": (net(lambda m, x: x.to(torch.float64).float().type_as(x)), EXACT),
    "local response norm": (part(lambda: nn.LocalResponseNorm(2)), WHOLE),
    "unit length over channels": (net(lambda m, x: F.normalize(x, dim=1)), WHOLE),
    "softmax over channels": (net(lambda m, x: x.softmax(1)), WHOLE),
    # --- norms ---
    "InstanceNorm": (part(lambda: nn.InstanceNorm2d(8)), EXACT),
    "InstanceNorm, affine": (part(lambda: nn.InstanceNorm2d(8, affine=True)), EXACT),
    "InstanceNorm of a bare convolution": (
        net(lambda m, x: m.n(m.c(x)).relu(), c=bare, n=lambda: nn.InstanceNorm2d(8, affine=True)),
        EXACT,
    ),
    "GroupNorm": (part(lambda: nn.GroupNorm(4, 8)), EXACT),
    "GroupNorm of a bare convolution": (
        net(lambda m, x: m.n(m.c(x)).relu(), c=bare, n=lambda: nn.GroupNorm(2, 8)),
        EXACT,
    ),
    "GroupNorm, one group": (part(lambda: nn.GroupNorm(1, 8)), WHOLE),
    "LayerNorm over channels": (
        net(lambda m, x: m.n(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), n=lambda: nn.LayerNorm(8)),
        WHOLE,
    ),
    "FrozenBatchNorm": (net(lambda m, x: m.n(m.c(x)).relu(), c=bare, n=FrozenBatchNorm), EXACT),
    "BatchNorm without running statistics": (
        part(lambda: nn.BatchNorm2d(8, track_running_stats=False)),
        "normalises by the batch",
    ),
    "BatchNorm on quarters of the map": (
        net(lambda m, x: m.a(x.reshape(-1, 8, 4, 4)).reshape(x.shape), a=lambda: conv_bn(8, 8)),
        "no domain can have a BatchNorm of its own",
    ),
    "BatchNorm whose scale is computed": (
        net(
            lambda m, x: F.batch_norm(x, m.n.running_mean, m.n.running_var, x.mean((0, 2, 3))),
            n=lambda: nn.BatchNorm2d(8),
        ),
        "no domain can have a BatchNorm of its own",
    ),
    "a mean over the batch": (net(lambda m, x: x - x.mean(0)), "on the others in its batch"),
    # --- weights ---
    "weight standardisation": (part(lambda: StandardisedConv(8, 8, 3)), EXACT),
    "weight standardisation by batch_norm": (
        part(lambda: BatchNormStandardisedConv(8, 8, 3)),
        EXACT,
    ),
    "weight norm": (part(lambda: weight_norm(bare())), EXACT),
    "weight norm, parametrised": (part(lambda: parametrizations.weight_norm(bare())), EXACT),
    "spectral norm": (part(lambda: spectral_norm(bare())), EXACT),
    "spectral norm, parametrised": (part(lambda: parametrizations.spectral_norm(bare())), EXACT),
    "a weight made of the image": (
        net(lambda m, x: x * 1 + F.conv2d(x, m.w * x.mean()), w=lambda: parameter(8, 8, 1, 1)),
        "on the others in its batch",
    ),
    "LayerScale by view": (
        net(lambda m, x: x + m.g.view(1, -1, 1, 1) * m.c(x), g=lambda: parameter(8), c=bare),
        EXACT,
    ),
    "LayerScale by reshape": (
        net(lambda m, x: x + m.c(x) * m.g.reshape(-1, 1, 1), g=lambda: parameter(8), c=bare),
        EXACT,
    ),
    "LayerScale by None": (
        net(lambda m, x: x * m.g[None, :, None, None], g=lambda: parameter(8)),
        EXACT,
    ),
    "a parameter for each place": (
        net(lambda m, x: x + m.p, p=lambda: parameter(1, 8, 8, 8)),
        EXACT,
    ),
    "a weight used twice": (net(lambda m, x: m.c(m.c(x).relu()), c=bare), EXACT),
    "ConvTranspose2d": (part(lambda: nn.ConvTranspose2d(8, 5, 2, 2), 5), EXACT),
    "ConvTranspose2d and BatchNorm": (
        part(lambda: nn.Sequential(nn.ConvTranspose2d(8, 5, 3, 2, 1, 1), nn.BatchNorm2d(5)), 5),
        EXACT,
    ),
    "ConvTranspose2d, depthwise": (part(lambda: nn.ConvTranspose2d(8, 8, 2, 2, groups=8)), EXACT),
    "ConvTranspose2d, grouped": (part(lambda: nn.ConvTranspose2d(8, 8, 2, 2, groups=2)), WHOLE),
    "depthwise, two outputs each": (part(lambda: conv_bn(8, 16, groups=8), 16), EXACT),
    "padding by name": (part(lambda: nn.Conv2d(8, 8, 3, padding="same", bias=False)), EXACT),
    "reflected padding": (part(lambda: nn.Conv2d(8, 8, 3, padding_mode="reflect")), EXACT),
    # --- channels moved ---
    "permute, Linear, permute": (
        net(lambda m, x: m.f(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2), f=linear()),
        EXACT,
    ),
    "permute, two Linears, permute": (
        net(
            lambda m, x: m.g(m.f(x.permute(0, 2, 3, 1)).relu()).permute(0, 3, 1, 2),
            f=linear(8, 12),
            g=linear(12, 8),
        ),
        EXACT,
    ),
    "flatten, Linear, back": (
        net(lambda m, x: m.f(x.flatten(2).transpose(1, 2)).mT.unflatten(2, (8, 8)), f=linear()),
        EXACT,
    ),
    "Linear over places": (
        net(lambda m, x: m.f(x.flatten(2)).view(x.shape), f=linear(64, 64)),
        WHOLE,
    ),
    "Linear to a map": (
        net(lambda m, x: m.f(x.mean((2, 3))).view(-1, 4, 4, 4), 4, f=linear(8, 64)),
        EXACT,
    ),
    "transposed sides": (net(lambda m, x: x.transpose(2, 3)), EXACT),
    "shuffle": (net(lambda m, x: shuffled(x, 2)), EXACT),
    "nn.ChannelShuffle": (part(lambda: nn.ChannelShuffle(4)), EXACT),
    "space to depth": (net(to_depth, 32), EXACT),
    "depth to space": (net(to_space, 2), EXACT),
    "pixel_shuffle": (part(lambda: nn.PixelShuffle(2), 2), EXACT),
    "pixel_unshuffle": (part(lambda: nn.PixelUnshuffle(2), 32), EXACT),
    "depth to space, activated": (net(lambda m, x: F.silu(F.pixel_shuffle(x, 2) - 1), 2), EXACT),
    "focus by slices": (
        net(lambda m, x: torch.cat([x[..., ::2, ::2], x[..., 1::2, 1::2]], 1), 16),
        EXACT,
    ),
    "squeeze without an axis": (
        net(lambda m, x: x * x.mean((2, 3), True).squeeze()[..., None, None]),
        EXACT,
    ),
    "narrow": (net(lambda m, x: x.narrow(1, 2, 4), 4), EXACT),
    "narrow from behind": (net(lambda m, x: x.narrow(-3, -6, 4), 4), EXACT),
    "split from behind": (net(lambda m, x: torch.cat(x.split([3, 5], -3)[::-1], -3)), EXACT),
    "index": (net(lambda m, x: x[:, [3, 1, 0, 6]], 4), EXACT),
    "index_select": (net(lambda m, x: x.index_select(1, torch.tensor([5, 2])), 2), EXACT),
    "flip over channels": (net(lambda m, x: x.flip(1)), EXACT),
    "roll over channels": (net(lambda m, x: x.roll(1, 1)), EXACT),
    "roll over positions": (net(lambda m, x: x.roll((1, 1), (2, 3))), EXACT),
    "repeat over channels": (net(lambda m, x: x.repeat(1, 2, 1, 1), 16), EXACT),
    "every other channel": (net(lambda m, x: x[:, ::2], 4), EXACT),
    "unbind": (net(lambda m, x: torch.stack(x.unbind(1)[:4], 1), 4), WHOLE),
    "unfold": (net(lambda m, x: F.unfold(x, 2, stride=2).view(-1, 32, 4, 4), 32), WHOLE),
    "windows": (net(windows, fc=linear(), norm=lambda: nn.LayerNorm(8)), WHOLE),
    "mean over groups of channels": (
        net(lambda m, x: x.view(x.shape[0], 4, 2, 8, 8).mean(2), 4),
        EXACT,
    ),
    # --- several tensors ---
    "a context beside the map": (
        net(
            lambda m, x: torch.cat([x, m.a(F.adaptive_avg_pool2d(x, 1)).expand_as(x)], 1),
            16,
            a=bare,
        ),
        EXACT,
    ),
    "view_as": (
        net(lambda m, x: m.a(x.flatten(2)).view_as(x), a=lambda: nn.Conv1d(8, 8, 1)),
        EXACT,
    ),
    "reshape_as": (
        net(lambda m, x: m.f(x.flatten(2).mT).mT.reshape_as(x), f=linear()),
        EXACT,
    ),
    "a mask of two bounds": (net(lambda m, x: x * ((x > 0.1) & ~(x > 1)).float()), EXACT),
    "stack and sum": (net(lambda m, x: torch.stack([x, m.a(x)], 0).sum(0), a=bare), WHOLE),
    "stack and mean": (net(lambda m, x: torch.stack([x, m.a(x)], 1).mean(1), a=bare), EXACT),
    "stack and maximum": (
        net(lambda m, x: torch.stack([x, m.a(x)], 4).amax(4), a=lambda: conv_bn(8, 8)),
        EXACT,
    ),
    "stack as channels": (
        net(lambda m, x: torch.stack([x, m.a(x)], 2).flatten(1, 2), 16, a=lambda: conv_bn(8, 8)),
        EXACT,
    ),
    "sum of a list": (net(lambda m, x: sum([x, m.a(x), x * 2]), a=bare), EXACT),
    "x + x.sum over channels": (net(lambda m, x: x + x.sum(1, keepdim=True)), EXACT),
    "x - x.mean over channels": (net(lambda m, x: x - x.mean(1, keepdim=True)), EXACT),
    "einsum gate": (
        net(lambda m, x: torch.einsum("nchw,nc->nchw", x, m.f(x.mean((2, 3)))), f=linear()),
        WHOLE,
    ),
    "dynamic sizes in interpolate": (
        net(lambda m, x: x + F.interpolate(m.a(F.max_pool2d(x, 2)), size=x.shape[2:]), a=bare),
        EXACT,
    ),
    "nearest-exact": (
        net(lambda m, x: F.interpolate(x, scale_factor=2, mode="nearest-exact")),
        EXACT,
    ),
    "anti-aliased": (
        net(lambda m, x: F.interpolate(x, size=4, mode="bilinear", antialias=True)),
        EXACT,
    ),
    "bicubic": (net(lambda m, x: F.interpolate(x, scale_factor=2, mode="bicubic")), EXACT),
    "zero-padded shortcut": (net(lambda m, x: F.pad(x, (0, 0, 0, 0, 2, 2)), 12), EXACT),
    "constant padding": (net(lambda m, x: F.pad(x, (1, 1, 1, 1), value=0.5)), EXACT),
    "coordinates joined": (
        net(lambda m, x: torch.cat([x, torch.ones_like(x[:, :1])], 1), 9),
        WHOLE,
    ),
    "a maximum of two, clipped": (
        net(lambda m, x: torch.clip(torch.max(x, m.a(x)), 0, 4), a=bare),
        EXACT,
    ),
    "a minimum of two": (net(lambda m, x: torch.min(x, m.a(x)), a=bare), EXACT),
    "writing into parts": (net(masked_in_parts), EXACT),
    "in place": (net(lambda m, x: m.a(x).add_(x).relu_(), a=bare), EXACT),
    "ConvNeXt's block": (part(Mixer), WHOLE),
    "ConvNeXt V2's block": (part(lambda: Mixer(response=True)), WHOLE),
    "attention": (part(Attention), WHOLE),
    "tokens": (
        net(
            tokens,
            8,
            False,
            token=lambda: parameter(1, 1, 8),
            places=lambda: parameter(1, 65, 8),
            norm=lambda: nn.LayerNorm(8),
            up=linear(8, 12),
            down=linear(12, 8),
        ),
        WHOLE,
    ),
    "a GRU": (
        net(
            lambda m, x: m.g(x.flatten(2).mT[:, :4])[0].mean(1),  # each step is traced
            6,
            False,
            g=lambda: nn.GRU(8, 6, batch_first=True),
        ),
        "recurrent layers are not followed",
    ),
    # --- what a network returns ---
    "a tuple": (net(lambda m, x: (x.mean((2, 3)), x), end=False), EXACT),
    "a dict": (net(lambda m, x: {"aux": x, "logits": x.mean((2, 3))}, end=False), EXACT),
    "a branch on the batch": (
        net(lambda m, x: x * 2 if x.shape[0] == 1 else x),
        "a branch on the batch size",
    ),
    "a branch on the data": (net(lambda m, x: x * 2 if x.sum() > 0 else x), "cannot trace"),
}
NETWORKS: dict[str, tuple[Callable[[], Any], str]] = BLOCKS | LAYERS

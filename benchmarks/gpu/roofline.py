"""How long a training step must take at least on a device, from what the device was seen to do."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import fx

from prunion.trainer.backbone import NORMS, op_name
from prunion.trainer.network import DomainNet

__all__ = ["Device", "least_seconds", "measure_device"]

# Passes over a tensor that a fused step cannot avoid, forward and backward together.
# BatchNorm needs the batch's statistics before it can normalise, both ways.
NORM_PASSES = 3 + 5
ADD_PASSES = 1


@dataclass(frozen=True)
class Device:
    """Best rates seen: `flops` of a matrix product per second, `bytes` moved per second."""

    flops: float
    bytes: float


def measure_device(device: str, dtype: torch.dtype, side: int = 8192, mib: int = 1024) -> Device:
    """Best of ten square matrix products and of ten copies."""
    a = torch.randn(side, side, device=device, dtype=dtype)
    source = torch.empty(mib << 20, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    product = _best(lambda: a @ a, device)
    copy = _best(lambda: target.copy_(source), device)
    return Device(2 * side**3 / product, 2 * source.numel() / copy)


def least_seconds(net: DomainNet, images: int, device: Device, *, tuned: bool, width: int) -> float:
    """Lower bound of one step over `images` images.

    A convolution takes the longer of its arithmetic and its traffic, forward, by its input and
    (`tuned`) by its weight; a BatchNorm and an addition take their traffic; activations and gates
    are taken to be free. Optimiser, heads and data are left out.

    Args:
        width: bytes of a number.
    """
    seconds = 0.0
    macs = {layer.weight: layer for layer in net.units.table.layers}
    for node in net.trunk.graph.nodes:
        name = op_name(node) if node.op == "call_function" else ""
        if name in ("conv2d", "linear"):
            layer = macs.get(str(node.args[1].target))
            if layer is None:
                continue
            flops = 2.0 * math.prod(layer.shape) * layer.positions * images
            moved = (_numel(node.args[0]) + _numel(node)) * images * width
            passes = 3 if tuned else 2
            seconds += passes * max(flops / device.flops, moved / device.bytes)
        elif node.op == "call_module" and str(node.target).startswith(NORMS):
            seconds += NORM_PASSES * _numel(node) * images * width / device.bytes
        elif name == "add":
            seconds += ADD_PASSES * _numel(node) * images * width / device.bytes
    return seconds


def _numel(node: fx.node.Argument) -> int:
    """Numbers per image."""
    assert isinstance(node, fx.Node)
    return math.prod(int(size) for size in node.meta["val"].shape[1:])


def _best(call: Callable[[], object], device: str) -> float:
    times = []
    for _ in range(12):
        start = time.perf_counter()
        call()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times[2:])

"""Inference on a GPU in torch: the selectable network, a folded one, and separate networks.

python -m prunion.benchmarks.gpu inference -o gpu.jsonl
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

from prunion.benchmarks.random_bundle import random_checkpoint
from prunion.exporter.slim import OneDomainNet, SlimNet, fold_domain, keep_domains, slim_network
from prunion.runtime.base import time_interleaved
from prunion.trainer.network import load_checkpoint
from prunion.trainer.processes import channels_last

__all__ = ["MODES", "NETWORKS", "Mode", "Networks", "inference_row", "make_networks"]

NETWORKS = (("resnet50", "torchvision", 224), ("mobilenet_v2", "torchvision", 96))
Mode = Literal["eager", "compiled", "graph"]
MODES: tuple[Mode, ...] = get_args(Mode)


@dataclass(frozen=True)
class Networks:
    """The same random checkpoint three ways.

    Attributes:
        selectable: every image picks its domain.
        folded: one domain alone, with the union's channels.
        separate: every domain's own network, unpruned and folded.
    """

    selectable: SlimNet
    folded: nn.Module
    separate: list[nn.Module]
    side: int


def make_networks(backbone: str, source: str, side: int, domains: int) -> Networks:
    """Half of every width in the union, random weights."""

    def made(density: float, own: float) -> tuple[SlimNet, list[OneDomainNet]]:
        with tempfile.TemporaryDirectory() as folder:
            path = random_checkpoint(
                Path(folder) / "c",
                backbone,
                domains,
                density,
                16,
                own=own,
                size=side,
                source=source,
            )
            whole = slim_network(load_checkpoint(path).net)
            alone = []
            for index in range(domains):
                one = keep_domains(load_checkpoint(path), [f"d{index}"])
                alone.append(fold_domain(slim_network(one.net)))
        return whole, alone

    whole, folded = made(0.5, 1.0)
    _, separate = made(1.0, 1.0)
    return Networks(whole, folded[0], list(separate), side)


def inference_row(
    networks: Networks, batch: int, device: str, dtype: torch.dtype, seconds: float, mode: Mode
) -> dict[str, Any]:
    """Milliseconds of each way at one batch size and in one mode, interleaved."""
    selectable = _placed(networks.selectable, device, dtype)
    folded = _placed(networks.folded, device, dtype)
    separate = [_placed(net, device, dtype) for net in networks.separate]
    kinds = {"selectable": [selectable], "folded": [folded], "separate": separate}
    image = torch.randn(batch, 3, networks.side, networks.side, device=device, dtype=dtype)
    image = image.to(memory_format=torch.channels_last)
    mixed = torch.arange(batch, device=device) % len(separate)
    parts = [image[mixed == d] for d in range(min(batch, len(separate)))]
    torch.compiler.reset()  # or, after eight shapes, what is called compiled is not
    cases = {
        "selectable": _prepared(selectable.logits, (image, mixed), mode),
        "folded": _prepared(folded, (image,), mode),
    }
    each = [_prepared(net, (x,), mode) for net, x in zip(separate, parts, strict=False)]
    cases["separate"] = partial(_one_after_another, each)
    row: dict[str, Any] = {"batch": batch, "mode": mode, "dtype": str(dtype).split(".")[1]}
    row |= _timed(cases, device, seconds)
    row["weights_mib"] = {name: _weights_mib(nets) for name, nets in kinds.items()}
    if device == "cuda" and mode == "eager":
        row["activations_mib"] = {name: _activations_mib(call) for name, call in cases.items()}
    return row


def _weights_mib(nets: Sequence[nn.Module]) -> float:
    tensors = [t for net in nets for t in (*net.parameters(), *net.buffers())]
    return round(sum(t.numel() * t.element_size() for t in tensors) / 2**20, 2)


def _activations_mib(call: Callable[[], Any]) -> float:
    """What a call takes on the GPU at its peak, beside what is there already."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    with torch.no_grad():
        call()
    torch.cuda.synchronize()
    return round((torch.cuda.max_memory_allocated() - before) / 2**20, 2)


def _placed(net: Any, device: str, dtype: torch.dtype) -> Any:
    net = net.to(device, dtype)
    channels_last(net)
    return net


def _one_after_another(calls: Sequence[Callable[[], Any]]) -> None:
    for call in calls:
        call()


def _timed(cases: dict[str, Callable[[], Any]], device: str, seconds: float) -> dict[str, Any]:
    def waited(call: Callable[[], Any]) -> Callable[[], None]:
        def run() -> None:
            with torch.no_grad():
                call()
            if device == "cuda":
                torch.cuda.synchronize()

        return run

    timings = time_interleaved({k: waited(v) for k, v in cases.items()}, seconds=seconds)
    best = {name: round(t.p50_ms, 4) for name, t in timings.items()}
    return {
        "ms": best,
        "selectable/folded": round(best["selectable"] / best["folded"], 3),
        "selectable/separate": round(best["selectable"] / best["separate"], 3),
    }


def _prepared(call: Callable[..., Any], inputs: tuple[Any, ...], mode: Mode) -> Callable[[], Any]:
    """The call with fixed inputs: as it is, compiled, or captured in a CUDA graph."""
    if mode == "compiled":
        call = torch.compile(call, dynamic=False)
    if mode != "graph":
        return lambda: call(*inputs)
    with torch.no_grad():
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):  # capture wants warmed-up libraries
            for _ in range(3):
                call(*inputs)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            call(*inputs)
    return graph.replay

"""The trunk with every channel, exported the same way: what a bundle is compared against."""

from __future__ import annotations

from pathlib import Path

import onnx
import torch

from prunion.exporter.onnx_graph import onnx_graph
from prunion.exporter.slim import slim_network
from prunion.runtime.files import replace_file
from prunion.trainer.checkpoint import load_checkpoint

__all__ = ["write_unpruned"]


def write_unpruned(checkpoint: Path | str, path: Path) -> Path:
    """Write a checkpoint's network as a selectable ONNX graph with every switch on."""
    loaded = load_checkpoint(checkpoint)
    loaded.net.switches.copy_(torch.ones_like(loaded.net.switches))
    slim = slim_network(loaded.net)
    with replace_file(path) as temporary:
        onnx.save(onnx_graph(slim, *loaded.config.input.size), temporary)
    return path

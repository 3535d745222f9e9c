"""Whole networks, every channel on, to measure against.

A run's before training, as a bundle (`export --untrained`, `profile RUN`), and a checkpoint's, as
one selectable graph.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import onnx
import torch

from prunion.exporter.bundle.export import bundle_name, export_bundle
from prunion.exporter.graph import onnx_graph
from prunion.exporter.slim import slim_network
from prunion.runtime.base import check_output, replace_file
from prunion.runtime.bundle import Manifest, foreign_to_bundle, load_manifest
from prunion.trainer.config import BudgetConfig, DomainConfig, RunConfig, TrainConfig, load_config
from prunion.trainer.network import build_network, load_checkpoint, save_checkpoint

__all__ = ["export_untrained", "untrained_bundle", "write_unpruned"]


DOMAIN = "probe"
CLASSES = 16  # of a stand-in domain: a gathered head's time hardly depends on it


@contextmanager
def untrained_bundle(run_file: Path | str) -> Iterator[Path]:
    """The bundle of a run's whole network in a temporary folder, for as long as it is measured."""
    config = load_config(run_file)
    with tempfile.TemporaryDirectory() as folder:
        bundle = Path(folder) / f"{Path(run_file).stem}.prunion"
        export_untrained(config, bundle)
        yield bundle


def export_untrained(config: RunConfig, output: Path, *, force: bool = False) -> Manifest:
    """Write the run's network with random weights and every channel as a bundle.

    It needs neither images nor weights: layers take the same time whatever they compute.

    Raises:
        PrunionError: `output` exists and `force` is not given.
    """
    bundle_name(output)
    check_output(output, force=force, wrote=foreign_to_bundle)
    torch.manual_seed(config.seed)
    weights = "default" if config.backbone.source == "python" else "none"
    backbone = replace(config.backbone, weights=weights, match="name")
    net = build_network(backbone, config.input.size, [CLASSES], weights=False)
    everything = replace(
        config,
        backbone=backbone,
        budget=BudgetConfig(1.0, "params", config.budget.round_to),
        domains=(DomainConfig(DOMAIN, train=(DOMAIN,), test=(DOMAIN,)),),
        train=TrainConfig(),
    )
    facts = {"domains": [{"name": DOMAIN, "classes": [f"class {n}" for n in range(CLASSES)]}]}
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        save_checkpoint(checkpoint, net.eval(), everything, facts, force=False)
        export_bundle(checkpoint, output, force=force)
    return load_manifest(output / "manifest.json")


def write_unpruned(checkpoint: Path | str, path: Path) -> Path:
    """Write a checkpoint's network as a selectable ONNX graph with every switch on."""
    loaded = load_checkpoint(checkpoint)
    loaded.net.switches.copy_(torch.ones_like(loaded.net.switches))
    slim = slim_network(loaded.net)
    with replace_file(path) as temporary:
        onnx.save(onnx_graph(slim, *loaded.config.input.size), temporary)
    return path

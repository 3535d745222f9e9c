"""Whole networks, every channel on, to measure against.

A run's before training, as a bundle (`export --untrained`, `profile RUN`), and a checkpoint's, as
one selectable graph.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import torch

from prunion.exporter.bundle.export import export_bundle
from prunion.exporter.graph.onnx_graph import onnx_graph
from prunion.exporter.slim.network import slim_network
from prunion.runtime.base.files import replace_file
from prunion.runtime.bundle.manifest import Manifest, load_manifest
from prunion.runtime.errors import PrunionError
from prunion.runtime.measure.profile import profile_command
from prunion.trainer.config.run import BudgetConfig, DomainConfig, RunConfig, load_config
from prunion.trainer.network.checkpoint import load_checkpoint, save_checkpoint
from prunion.trainer.network.masked import build_network

__all__ = ["export_untrained", "profile_run_command", "untrained_command", "write_unpruned"]


DOMAIN = "probe"
CLASSES = 16  # of a stand-in domain: a gathered head's time hardly depends on it


def untrained_command(run_file: str, output: str, force: bool, as_json: bool) -> None:
    """The command line's `export RUN.toml --untrained`."""
    manifest = export_untrained(load_config(run_file), Path(output), force=force)
    if as_json:
        print(json.dumps(manifest.to_json(), indent=1, ensure_ascii=False))
        return
    shape, params = manifest.input, manifest.params["backbone"]
    print(
        f"{output}: every channel of the network, random weights, one stand-in domain; "
        f"{shape.height}×{shape.width}, {params:,.0f} parameters; measure it on the target with "
        f"`prunion profile {output} -o device.json`"
    )


def profile_run_command(run_file: str, output: str, options: dict[str, Any]) -> None:
    """The command line's `profile RUN.toml`, on a machine that has torch."""
    config = load_config(run_file)
    with tempfile.TemporaryDirectory() as folder:
        probe = Path(folder) / f"{Path(run_file).stem}.prunion"
        export_untrained(config, probe)
        profile_command(str(probe), output, options)


def export_untrained(config: RunConfig, output: Path, *, force: bool = False) -> Manifest:
    """Write the run's network with random weights and every channel as a bundle.

    It needs neither images nor weights: layers take the same time whatever they compute.

    Raises:
        PrunionError: `output` exists and `force` is not given.
    """
    if output.exists() and not force:
        raise PrunionError(f"{output} already exists: choose another place or pass --force")
    torch.manual_seed(config.seed)
    backbone = replace(config.backbone, weights="none", match="name")
    net = build_network(backbone, config.input.size, [CLASSES], weights=False)
    everything = replace(
        config,
        backbone=backbone,
        budget=BudgetConfig(1.0, "params", config.budget.round_to),
        domains=(DomainConfig(DOMAIN, train=(DOMAIN,), test=(DOMAIN,)),),
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

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
from prunion.exporter.options import ExportOptions
from prunion.exporter.slim import keep_domains, slim_network
from prunion.runtime.base import check_output, replace_file
from prunion.runtime.bundle import Manifest, foreign_to_bundle, load_manifest, open_bundle
from prunion.runtime.errors import InputError
from prunion.trainer.config import BudgetConfig, DomainConfig, RunConfig, TrainConfig, load_config
from prunion.trainer.network import (
    DomainNet,
    build_network,
    finish_weights,
    load_checkpoint,
    save_checkpoint,
)

__all__ = [
    "export_untrained",
    "unpruned_network",
    "untrained_bundle",
    "write_unpruned",
    "write_unpruned_of",
]


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


def export_untrained(
    config: RunConfig,
    output: Path,
    options: ExportOptions | None = None,
    *,
    force: bool = False,
) -> Manifest:
    """Write the run's network with random weights and every channel as a bundle.

    It needs neither images nor weights: layers take the same time whatever they compute.

    Args:
        options: without INT8, which needs images, and without a choice of domains.

    Raises:
        PrunionError: `output` exists and `force` is not given.
    """
    bundle_name(output)
    check_output(output, force=force, wrote=foreign_to_bundle, whole=True)
    torch.manual_seed(config.seed)
    weights = "default" if config.backbone.source == "python" else "none"
    backbone = replace(config.backbone, weights=weights, match="name")
    shape, own = config.input.size, config.own_normalisation
    net = build_network(backbone, shape, [CLASSES], weights=False, own_normalisation=own)
    with torch.no_grad():
        # As trained ones do, equal vectors differ: torch's exporter stores equal ones once, under
        # one layer's name, and that one may lose other channels.
        for value in net.trunk.parameters():
            if value.dim() == 1:
                value.add_(0.01 * torch.randn_like(value))
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
        export_bundle(checkpoint, output, options, force=force)
    return load_manifest(output / "manifest.json")


def write_unpruned(checkpoint: Path | str, path: Path) -> Path:
    """Write a checkpoint's network as a selectable ONNX graph with every switch on."""
    loaded = load_checkpoint(checkpoint)
    return _write_whole(loaded.net, loaded.config.input.size, path)


def write_unpruned_of(bundle: Path | str, checkpoint: Path | str | None, path: Path) -> Path:
    """Write a bundle's network with every channel, as a selectable ONNX graph.

    Raises InputError as `unpruned_network`.
    """
    return _write_whole(*unpruned_network(bundle, checkpoint), path)


def unpruned_network(
    bundle: Path | str, checkpoint: Path | str | None
) -> tuple[DomainNet, tuple[int, int]]:
    """A bundle's network with every channel, and its images' height and width.

    Of `checkpoint` where it is given; else of the backbone that the bundle says it was made from,
    with random weights, which take as long.

    Raises:
        InputError: the checkpoint is another network's, or the bundle does not say enough.
    """
    manifest = open_bundle(bundle).manifest
    names, size = [x.name for x in manifest.domains], (manifest.input.height, manifest.input.width)
    if checkpoint is not None:
        loaded = load_checkpoint(checkpoint)
        held = {str(x["name"]) for x in loaded.meta["domains"]}
        if loaded.config.input.size != size or not held.issuperset(names):
            raise InputError(
                f"{checkpoint} is of other domains or sizes of images than {bundle}: give the one "
                "that it was exported from"
            )
        # A bundle may hold some of the domains: what is timed beside it has as many.
        return keep_domains(loaded, names).net, size
    recorded = manifest.provenance.config if manifest.provenance else {}
    if dict(recorded.get("backbone") or {}).get("source", "python") == "python":
        raise InputError(
            f"{bundle} does not say which library's backbone it was made from: give its run or "
            "checkpoint with --checkpoint"
        )
    config = RunConfig.from_checkpoint(recorded)
    backbone = replace(config.backbone, weights="none", match="name")
    classes = [len(x.classes) for x in manifest.domains]
    torch.manual_seed(config.seed)
    own = config.own_normalisation
    return build_network(backbone, size, classes, weights=False, own_normalisation=own).eval(), size


def _write_whole(net: DomainNet, size: tuple[int, int], path: Path) -> Path:
    net.switches.copy_(torch.ones_like(net.switches))
    finish_weights(net)
    net.adapter = None  # the trunk alone: what a method adds is no part of what would stand instead
    slim = slim_network(net)
    with replace_file(path) as temporary:
        onnx.save(onnx_graph(slim, *size), temporary)
    return path

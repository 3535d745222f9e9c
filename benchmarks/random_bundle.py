"""A bundle of any backbone with random weights and switches: real shapes without training."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from prunion.exporter.bundle import export_bundle
from prunion.exporter.options import ExportOptions
from prunion.trainer.backbone import load_backbone
from prunion.trainer.config import RunConfig
from prunion.trainer.network import DomainNet, save_checkpoint

__all__ = ["random_bundle", "random_checkpoint"]


def random_bundle(
    path: Path | str,
    backbone: str = "resnet18",
    domains: int = 4,
    density: float = 0.5,
    round_to: int = 16,
    *,
    own: float = 0.75,
    size: int = 96,
    classes: int = 50,
    source: str = "torchvision",
    seed: int = 0,
    force: bool = False,
    options: ExportOptions | None = None,
) -> Path:
    """Write a verified bundle folder at `path` and return it.

    Args:
        backbone: a network's name in `source` (torchvision or timm).
        domains: how many; they are called `d0`, `d1`, …, each with `classes` classes.
        density: share of every width that the union keeps, rounded up to `round_to`.
        own: share of the union's channels that each domain uses, at least `1 / domains`, rounded
            up to `round_to` too.
        size: image side in pixels.
        options: what else to export; INT8 is calibrated on generated images.

    Weights are the library's random initialisation; BatchNorm differs between the domains.
    """
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = random_checkpoint(
            Path(folder) / "checkpoint",
            backbone,
            domains,
            density,
            round_to,
            own=own,
            size=size,
            classes=classes,
            source=source,
            seed=seed,
            images=options is not None and options.int8,
        )
        export_bundle(checkpoint, path, options, force=force)
    return Path(path)


def random_checkpoint(
    path: Path,
    backbone: str,
    domains: int,
    density: float,
    round_to: int,
    *,
    own: float = 0.75,
    size: int = 96,
    classes: int = 50,
    source: str = "torchvision",
    seed: int = 0,
    images: bool = False,
    cut: str = "",
) -> Path:
    """The checkpoint folder that `random_bundle` exports; the same arguments.

    `images` also writes generated images beside it, one of each class to train and to test on;
    `cut` keeps the network up to that module.
    """
    names = [f"d{index}" for index in range(domains)]
    labels = [f"class {index:03}" for index in range(classes)]
    folders = {
        name: {"train": f"{path}.images/{name}/train", "test": f"{path}.images/{name}/test"}
        for name in names
    }
    if images:
        _draw([Path(f) for pair in folders.values() for f in pair.values()], labels, size, seed)
    config = RunConfig.from_json(
        {
            "backbone": {
                "name": backbone,
                "source": source,
                "weights": "none",
                **({"cut": cut} if cut else {}),
            },
            "input": {"size": size},
            "budget": {"kind": "params", "limit": 1.0, "round_to": round_to},
            "domains": folders,
            "seed": seed,
        }
    )
    torch.manual_seed(seed)
    trunk = load_backbone(config.backbone, size, size, weights=False)
    net = DomainNet(trunk, [classes] * domains)
    _vary_norms(net)
    switches = _random_switches(net, density, own, round_to, np.random.default_rng(seed))
    net.switches.copy_(torch.from_numpy(switches))
    facts = {"domains": [{"name": name, "classes": labels} for name in names]}
    save_checkpoint(path, net.eval(), config, facts, force=True)
    return path


def _draw(folders: list[Path], labels: list[str], size: int, seed: int) -> None:
    """One blurred, coloured picture for each class and folder."""
    random = np.random.default_rng(seed)
    for folder in folders:
        for label in labels:
            (folder / label).mkdir(parents=True)
            few = random.integers(0, 256, (4, 4, 3), np.uint8)
            image = Image.fromarray(few).resize((size, size), Image.Resampling.BICUBIC)
            image.save(folder / label / "0.png")


def _vary_norms(net: DomainNet) -> None:
    """Give every domain its own statistics; small, so that deep networks keep their range."""
    with torch.no_grad():
        for norm in net.norms.values():
            norm.weight.mul_(1 + 0.1 * torch.randn_like(norm.weight))
            norm.bias.add_(0.1 * torch.randn_like(norm.bias))
            norm.running_mean.add_(0.1 * torch.randn_like(norm.running_mean))
            norm.running_var.mul_(1 + 0.2 * torch.rand_like(norm.running_var))


def _random_switches(
    net: DomainNet, density: float, own: float, round_to: int, random: np.random.Generator
) -> np.ndarray:
    """`[D, U]` float32 of 0 and 1, every width of union and domains a multiple of `round_to`."""
    table, count = net.units.table, len(net.classes)
    switches = np.zeros((count, table.count), np.float32)
    for channels in table.widths:
        members = random.permutation(channels)
        union = members[: _width(density, len(members), round_to)]
        width = _width(own, len(union), round_to)
        for domain in range(count):
            # Windows around a circle: every channel of the union has a user.
            start = domain * len(union) // count
            switches[domain, np.take(union, range(start, start + width), mode="wrap")] = 1
    return switches


def _width(share: float, full: int, round_to: int) -> int:
    wanted = max(1, round(share * full))
    return min(-(-wanted // round_to) * round_to, full)

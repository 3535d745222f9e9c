"""What is served: networks with random weights at real shapes, and packs of many domains."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prunion.benchmarks.serving.clients import Traffic, make_traffic
from prunion.runtime.bundle import open_bundle, write_pack
from prunion.runtime.model import Model, load

__all__ = ["Network", "bundle_of", "filled", "pack_folder", "packs_of", "traffic_of"]


@dataclass(frozen=True)
class Network:
    """One network.

    Attributes:
        density: the share of every width that the union keeps.
        own: the share of the union that each domain uses; 1 is what training leaves by default.
    """

    backbone: str
    size: int
    density: float = 0.5
    domains: int = 6
    own: float = 0.75

    @property
    def name(self) -> str:
        """A folder's name."""
        name = f"{self.backbone}-{self.size}-{self.density:g}-{self.domains}"
        return f"{name}-union" if self.own == 1 else name


def bundle_of(network: Network, folder: Path) -> Path:
    """Its bundle in `folder`, made unless it is there."""
    path = folder / f"{network.name}.prunion"
    if not path.exists():
        from prunion.benchmarks.random_bundle import random_bundle  # needs torch

        own = 1.0 if network.density == 1 else network.own
        random_bundle(
            path, network.backbone, network.domains, network.density, own=own, size=network.size
        )
    return path


def pack_folder(bundle: Path, count: int, folder: Path) -> Path:
    """A folder of `count` packs of the bundle's trunk: each a domain of its own."""
    path = folder / f"{bundle.stem}-packs-{count}"
    if path.exists():
        return path
    own, random = open_bundle(bundle), np.random.default_rng(0)
    packs = [own.pack(name) for name in own.domains]
    path.mkdir(parents=True)
    for number in range(count):
        pack = packs[number % len(packs)]
        bank = pack.bank * random.uniform(0.9, 1.1, len(pack.bank)).astype(np.float32)
        name = f"more{number:04}"
        made = dataclasses.replace(pack, name=name, bank=bank)
        write_pack(path / f"{name}.safetensors", made)
    return path


def packs_of(folder: Path | None) -> list[Path]:
    """The packs in a folder, in the order of their names."""
    return [] if folder is None else sorted(folder.glob("*.safetensors"))


def filled(bundle: Path, packs: Sequence[Path], threads: int) -> Model:
    """The bundle in this process, and the domains of `packs`."""
    model = load(bundle, "cpu", threads=threads)
    for pack in packs:
        model.add_domain(pack)
    return model


def traffic_of(model: Model, *, checked: bool = True) -> Traffic:
    """Requests for every domain of a model, and its answers to them."""
    form = model.sessions.form
    traffic = make_traffic(model.bundle.manifest.name, model.domains, form.image_shape)
    if not checked:
        return traffic
    rows = [model.logits(traffic.image(place), [name]) for place, name in enumerate(traffic.names)]
    return dataclasses.replace(traffic, expected=np.concatenate(rows))

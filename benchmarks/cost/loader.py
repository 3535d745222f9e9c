"""`python -m prunion.benchmarks.cost.loader`: images a second, beside torchvision's DataLoader.

Both read the same JPEGs from class folders, resize the shorter side, crop at random, mirror,
normalise, and give batches of float32; torchvision's is `ImageFolder` with transforms in a
`DataLoader`. The bound is what the cores decode when they do nothing else. prunion also keeps
resized images in memory, so a later epoch is measured beside the first.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from PIL import Image

from prunion.runtime.base import usable_cores, write_json
from prunion.runtime.cli import FilePath, OneLineCommand
from prunion.trainer.config import (
    BackboneConfig,
    BudgetConfig,
    DomainConfig,
    InputConfig,
    RunConfig,
    TrainConfig,
)
from prunion.trainer.data import JointBatches, open_domains

__all__ = ["Rate", "loader_command", "loader_rates", "write_photos"]

CLASSES = 4
QUALITY = 90


@dataclass(frozen=True)
class Rate:
    """Images a second of one way to load them; `workers` are processes, 0 is one thread."""

    name: str
    workers: int
    images_per_second: float


@click.command(cls=OneLineCommand)
@click.option("--images", default=1024, show_default=True)
@click.option("--side", default=400, show_default=True, help="Of the stored images, in pixels.")
@click.option("--size", default=224, show_default=True, help="Of what the network sees.")
@click.option("--batch", default=64, show_default=True)
@click.option("--workers", default=f"0,{usable_cores()}", show_default=True, help="A list.")
@click.option("--repeats", default=3, show_default=True)
@click.option("--json", "path", type=FilePath(dir_okay=False))
def loader_command(
    images: int, side: int, size: int, batch: int, workers: str, repeats: int, path: str | None
) -> None:
    """Write images that are as large as photos', and read them in every way."""
    torch.set_num_threads(1)
    counts = [int(count) for count in workers.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        mean = write_photos(Path(folder), images, side)
        print(f"{images} JPEGs of {side}×{side}, {mean / 1024:.0f} KiB each; {size}×{size} out")
        rates = loader_rates(Path(folder), size, batch, counts, repeats)
    bounds = {rate.workers: rate.images_per_second for rate in rates if rate.name == "decode only"}
    for rate in rates:
        share = rate.images_per_second / bounds[rate.workers]
        print(
            f"{rate.name:<28}{rate.workers:>3} workers {rate.images_per_second:>8.0f} images/s "
            f"{share:>6.2f} of decoding"
        )
    if path:
        write_json(path, [asdict(rate) for rate in rates])


def write_photos(folder: Path, images: int, side: int) -> float:
    """Write JPEGs into class folders, the same every time; returns their mean size in bytes.

    Smooth shapes with a little noise compress about as photos do, which pure noise would not.
    """
    draw, sizes = np.random.default_rng(0), []
    for number in range(images):
        coarse = draw.integers(0, 256, (12, 12, 3), dtype=np.uint8)
        smooth = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
        noise = draw.normal(0, 6, (side, side, 3))
        pixels = (np.asarray(smooth) + noise).clip(0, 255).astype(np.uint8)
        path = folder / f"class{number % CLASSES}" / f"{number:05}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=QUALITY)
        sizes.append(path.stat().st_size)
    return statistics.fmean(sizes)


def loader_rates(
    folder: Path, size: int, batch: int, workers: Iterable[int], repeats: int
) -> list[Rate]:
    """The median rate of every way and number of workers; ways take turns within a repeat."""
    found: dict[tuple[str, int], list[float]] = {}
    for _ in range(repeats):
        for count in workers:
            for name, rate in _rates(folder, size, batch, count).items():
                found.setdefault((name, count), []).append(rate)
    return [Rate(*key, statistics.median(rates)) for key, rates in found.items()]


def _rates(folder: Path, size: int, batch: int, workers: int) -> dict[str, float]:
    ours = _ours(folder, size, batch, workers, cache_bytes=0)
    kept = _ours(folder, size, batch, workers, cache_bytes=4 << 30)
    return {
        "decode only": _rate(partial(_decoded, folder, workers)),
        "torchvision's DataLoader": _rate(_torchvision(folder, size, batch, workers)),
        "prunion, nothing kept": _rate(partial(_read, ours, 0)),
        "prunion, first epoch": _rate(partial(_read, kept, 0)),
        "prunion, later epochs": _rate(partial(_read, kept, 1)),
    }


def _rate(read: Callable[[], int]) -> float:
    """Images a second of what returns how many it has read."""
    begin = time.perf_counter()
    count = read()
    return count / (time.perf_counter() - begin)


def _decoded(folder: Path, workers: int) -> int:
    """Every image decoded and dropped."""
    paths = sorted(folder.rglob("*.jpg"))
    if not workers:
        return _decode(paths)
    parts = [paths[start::workers] for start in range(workers)]
    with ProcessPoolExecutor(workers, mp_context=get_context("fork")) as pool:
        return sum(pool.map(_decode, parts))


def _decode(paths: list[Path]) -> int:
    for path in paths:
        with Image.open(path) as image:
            image.convert("RGB")
    return len(paths)


def _torchvision(folder: Path, size: int, batch: int, workers: int) -> Callable[[], int]:
    from torch.utils.data import DataLoader
    from torchvision import datasets, transforms

    seen = InputConfig((size, size), _resized(size))
    changes = transforms.Compose(
        [
            transforms.Resize(seen.resize),
            transforms.RandomCrop(size),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(seen.mean, seen.std),
        ]
    )
    loader: Any = DataLoader(
        datasets.ImageFolder(str(folder), changes), batch, shuffle=True, num_workers=workers
    )
    return lambda: sum(len(labels) for _, labels in loader)


def _ours(folder: Path, size: int, batch: int, workers: int, cache_bytes: int) -> JointBatches:
    """prunion's batches of the folder as the only domain; opening it is not timed."""
    config = RunConfig(
        backbone=BackboneConfig("resnet18", weights="none"),
        budget=BudgetConfig(0.5),
        domains=(DomainConfig("photos", train=(str(folder),), test=(str(folder),), mirror=True),),
        input=InputConfig((size, size), _resized(size)),
        train=TrainConfig(batch_size=batch, workers=workers),
    )
    return JointBatches(open_domains(config.domains, 0), config, cache_bytes)


def _read(batches: JointBatches, epoch: int) -> int:
    return sum(len(part.labels) for step in batches.epoch(epoch) for part in step)


def _resized(size: int) -> int:
    """The shorter side before the crop: an eighth more."""
    return round(size * 9 / 8)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    loader_command()

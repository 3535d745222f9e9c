"""A whole run small enough for a test: real files, a few dozen images, a small backbone."""

from __future__ import annotations

import functools
import io
from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["tiny_run", "write_domain"]

COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def write_domain(folder: Path, classes: list[str], count: int, seed: int) -> None:
    """Class folders of noisy plain colours."""
    for place, image in _images(tuple(classes), count, seed):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(image)


@functools.cache  # hundreds of tests begin with the same ones
def _images(classes: tuple[str, ...], count: int, seed: int) -> list[tuple[str, bytes]]:
    noise, made = np.random.default_rng(seed), []
    for split in ("train", "test"):
        for name in classes:
            for index in range(count):
                pixels = np.array(COLOURS[name]) + noise.normal(0, 40, (24, 30, 3))
                stream = io.BytesIO()
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(stream, "PNG")
                made.append((f"{split}/{name}/{index}.png", stream.getvalue()))
    return made


def tiny_run(folder: Path, **train: object) -> Path:
    """Two domains and a run file over shufflenet's little brother; returns the run file."""
    write_domain(folder / "data" / "warm", ["red", "green"], 8, 0)
    write_domain(folder / "data" / "cold", ["green", "blue", "red"], 8, 1)
    options = {"warmup": 1, "ramp": 2, "settle": 1, "batch_size": 8, **train}
    lines = "\n".join(f"{key} = {value}" for key, value in options.items())
    path = folder / "run.toml"
    path.write_text(
        f"""
seed = 3
threads = 1
[backbone]
source = "torchvision"
name = "resnet18"
weights = "none"
cut = "layer1"
[input]
size = 16
[budget]
kind = "params"
limit = 0.5
round_to = 8
[train]
{lines}
[domains.warm]
train = "data/warm/train"
test = "data/warm/test"
[domains.cold]
train = "data/cold/train"
test = "data/cold/test"
mirror = true
""",
        "utf-8",
    )
    return path

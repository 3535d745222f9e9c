"""Changes of training images beyond cropping and mirroring: of one image, and of a batch's images.

Every choice comes from a generator that is handed in, so that the same image is changed alike
whoever reads it. torchvision's own transforms draw from torch's global generator instead.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2 import functional as tv

from prunion.trainer.config import AugmentConfig

__all__ = ["Mix", "augmented", "draw_mix", "rescaled"]

OPERATIONS = 2  # of RandAugment, for each image
HIGHEST = 30  # magnitude
ERASED = 0.02, 1 / 3  # share of the image's area
LONGEST = 10 / 3  # side of a rectangle over the other
WIDEST = 4 / 3  # side of a rescaled crop over the other
TRIES = 10

Fill = list[float]
# From an image, a strength in -1 … 1 and what fills the outside, as torchvision's RandAugment.
Change = Callable[[torch.Tensor, float, Fill], torch.Tensor]


def _moved(image: torch.Tensor, fill: Fill, **how: float) -> torch.Tensor:
    shift = [int(how.get("right", 0)), int(how.get("down", 0))]
    shear = [math.degrees(math.atan(how.get(axis, 0.0))) for axis in ("x", "y")]
    centre = [0.0, 0.0] if any(shear) else None
    moved: torch.Tensor = tv.affine(image, 0.0, shift, 1.0, shear, fill=fill, center=centre)
    return moved


CHANGES: dict[str, Change] = {
    "identity": lambda x, s, f: x,
    "shear x": lambda x, s, f: _moved(x, f, x=0.3 * s),
    "shear y": lambda x, s, f: _moved(x, f, y=0.3 * s),
    "translate x": lambda x, s, f: _moved(x, f, right=150 / 331 * s * x.shape[-1]),
    "translate y": lambda x, s, f: _moved(x, f, down=150 / 331 * s * x.shape[-2]),
    "rotate": lambda x, s, f: tv.rotate(x, 30 * s, fill=f),
    "brightness": lambda x, s, f: tv.adjust_brightness(x, 1 + 0.9 * s),
    "saturation": lambda x, s, f: tv.adjust_saturation(x, 1 + 0.9 * s),
    "contrast": lambda x, s, f: tv.adjust_contrast(x, 1 + 0.9 * s),
    "sharpness": lambda x, s, f: tv.adjust_sharpness(x, 1 + 0.9 * s),
    "posterize": lambda x, s, f: tv.posterize(x, 8 - round(4 * abs(s))),
    "solarize": lambda x, s, f: tv.solarize(x, 255 * (1 - abs(s))),
    "autocontrast": lambda x, s, f: tv.autocontrast(x),
    "equalize": lambda x, s, f: tv.equalize(x),
}
COLOURS: tuple[Callable[[torch.Tensor, float], torch.Tensor], ...] = (
    tv.adjust_brightness,
    tv.adjust_contrast,
    tv.adjust_saturation,
)


def rescaled(
    pixels: np.ndarray, size: tuple[int, int], smallest: float, rng: np.random.Generator
) -> np.ndarray:
    """A part of bytes `[h, w, 3]`, of `smallest` … 1 of its area, resized to `size` `[H, W, 3]`.

    Where no such part is found, as of a very long image, the largest centre of the same shape.
    """
    height, width = pixels.shape[:2]
    for _ in range(TRIES):
        area = height * width * rng.uniform(smallest, 1)
        ratio = math.exp(rng.uniform(-math.log(WIDEST), math.log(WIDEST)))
        rows, columns = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < rows <= height and 0 < columns <= width:
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            break
    else:
        scale = min(height / size[0], width / size[1])
        rows, columns = round(size[0] * scale), round(size[1] * scale)
        top, left = (height - rows) // 2, (width - columns) // 2
    part = Image.fromarray(np.ascontiguousarray(pixels[top : top + rows, left : left + columns]))
    return np.asarray(part.resize(size[::-1], Image.Resampling.BILINEAR))


def augmented(
    pixels: np.ndarray, config: AugmentConfig, mean: Sequence[float], rng: np.random.Generator
) -> np.ndarray:
    """Bytes `[H, W, 3]` changed as `config` says; `mean` is the colour, in 0 … 1, of what is empty.

    Mixing is of batches, so it is not done here.
    """
    fill = [float(round(255 * value)) for value in mean]
    if config.randaugment or config.colour:
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)
        if config.randaugment:
            image = _randaugment(image, config.randaugment / HIGHEST, fill, rng)
        for place in rng.permutation(len(COLOURS)) if config.colour else ():
            image = COLOURS[place](image, 1 + config.colour * rng.uniform(-1, 1))
        pixels = image.permute(1, 2, 0).numpy()
    if config.erasing and rng.random() < config.erasing:
        pixels = _erased(pixels, fill, rng)
    return pixels


def _randaugment(
    image: torch.Tensor, strength: float, fill: Fill, rng: np.random.Generator
) -> torch.Tensor:
    changes = list(CHANGES.values())
    for number in rng.integers(len(changes), size=OPERATIONS):
        image = changes[number](image, strength if rng.random() < 0.5 else -strength, fill)
    return image


def _erased(pixels: np.ndarray, fill: Fill, rng: np.random.Generator) -> np.ndarray:
    height, width = pixels.shape[:2]
    for _ in range(TRIES):
        area = height * width * rng.uniform(*ERASED)
        ratio = math.exp(rng.uniform(-math.log(LONGEST), math.log(LONGEST)))
        rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < rows < height and 0 < columns < width:
            top, left = rng.integers(height - rows + 1), rng.integers(width - columns + 1)
            pixels = pixels.copy()
            pixels[top : top + rows, left : left + columns] = fill
            break
    return pixels


@dataclass(frozen=True)
class Mix:
    """What each of a batch's images is mixed with.

    Attributes:
        partners: for each image the number of another, `[n]`.
        kept: share of every image, and of its label, that stays its own: at least a half.
        box: of cutmix the rows and columns that are the partner's; None adds whole images.
    """

    partners: np.ndarray
    kept: float
    box: tuple[slice, slice] | None

    def __call__(self, images: torch.Tensor, others: torch.Tensor) -> torch.Tensor:
        """Images `[n, 3, H, W]` mixed with their partners, `[n, 3, H, W]`."""
        if self.box is None:
            return images * self.kept + others * (1 - self.kept)
        mixed = images.clone()
        mixed[(..., *self.box)] = others[(..., *self.box)]
        return mixed


def draw_mix(
    config: AugmentConfig, count: int, size: tuple[int, int], rng: np.random.Generator
) -> Mix | None:
    """How a batch of `count` images of `size` (height, width) is mixed; None if it is not."""
    if not config.mixes:
        return None
    cuts = config.cutmix > 0 and (config.mixup == 0 or rng.random() < 0.5)
    alpha = config.cutmix if cuts else config.mixup
    # Partners are drawn evenly, so it is no matter which of the two has the larger share.
    kept = float(rng.beta(alpha, alpha))
    kept = max(kept, 1 - kept)
    partners = rng.permutation(count)
    if not cuts:
        return Mix(partners, kept, None)
    box, area = list[slice](), 1.0
    for side in size:
        middle, half = int(rng.integers(side)), int(math.sqrt(1 - kept) * side / 2)
        box.append(slice(max(0, middle - half), min(side, middle + half)))
        area *= (box[-1].stop - box[-1].start) / side
    return Mix(partners, 1 - area, (box[0], box[1]))

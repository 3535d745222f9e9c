"""What happens to an image before the network sees it, in training and in evaluation.

Geometry works on each image's bytes; the step to normalised floats is taken once for a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from prunion.trainer.config import AugmentConfig, InputConfig
from prunion.trainer.data.augment import augmented, rescaled

__all__ = ["EvalTransform", "TrainTransform", "eval_transform", "normalised", "train_transform"]

# Training crops from an image this much larger than the crop: 72 pixels for 64.
CROP_MARGIN = 1.125


@dataclass(frozen=True)
class EvalTransform:
    """Resize the shorter side (Pillow's bilinear), crop the centre, normalise.

    Only what Pillow and numpy can repeat exactly: the runtime does the same without torch.

    Attributes:
        crops: views of each image: 1 (the centre), 5 (and the corners) or 10 (and mirrored).
    """

    input: InputConfig
    crops: int = 1

    @property
    def shorter_side(self) -> int:
        """What the shorter side is resized to, in pixels."""
        return self.input.shorter_side

    def pixels(self, image: Image.Image) -> np.ndarray:
        """PIL RGB to the views' bytes, `[crops, H, W, 3]`."""
        array = _resized(image, self.shorter_side)
        height, width = self.input.size
        bottom, right = array.shape[0] - height, array.shape[1] - width
        places = [_centre(array, height, width)]
        if self.crops > 1:
            places += [(0, 0), (0, right), (bottom, 0), (bottom, right)]
        views = np.stack([array[y : y + height, x : x + width] for y, x in places])
        return np.concatenate([views, views[:, :, ::-1]]) if self.crops == 10 else views

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """PIL RGB to float32 `[3, H, W]`: the centre alone."""
        return normalised(self.pixels(image)[:1], self.input)[0]


@dataclass(frozen=True)
class TrainTransform:
    """The evaluation's geometry, or a random crop from a slightly larger image; maybe mirrored.

    Then what `augment` asks for; `mean` is the domain's own, None where it is the input's.
    """

    input: InputConfig
    mirror: bool
    crop: bool
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    mean: tuple[float, float, float] | None = None

    @property
    def shorter_side(self) -> int:
        """What the shorter side is resized to, in pixels."""
        if not self.crop:
            return self.input.shorter_side
        return max(self.input.shorter_side, round(CROP_MARGIN * max(self.input.size)))

    def pixels(self, image: Image.Image, rng: np.random.Generator) -> np.ndarray:
        """PIL RGB to bytes `[H, W, 3]`; every random choice comes from `rng`."""
        array = _resized(image, self.shorter_side)
        height, width = self.input.size
        if self.crop and self.augment.rescale:
            array = rescaled(array, self.input.size, self.augment.rescale, rng)
            top, left = 0, 0
        elif self.crop:
            top = int(rng.integers(array.shape[0] - height + 1))
            left = int(rng.integers(array.shape[1] - width + 1))
        else:
            top, left = _centre(array, height, width)
        array = array[top : top + height, left : left + width]
        array = array[:, ::-1] if self.mirror and rng.random() < 0.5 else array
        return augmented(array, self.augment, self.mean or self.input.mean, rng)

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
        """PIL RGB to float32 `[3, H, W]`."""
        return normalised([self.pixels(image, rng)], self.input)[0]


def train_transform(
    config: InputConfig,
    mirror: bool,
    crop: bool,
    augment: AugmentConfig | None = None,
    mean: tuple[float, float, float] | None = None,
) -> TrainTransform:
    """The training transform of a domain: `transform(image, rng) -> [3, H, W]`."""
    return TrainTransform(config, mirror, crop, augment or AugmentConfig(), mean)


def eval_transform(config: InputConfig, crops: int = 1) -> EvalTransform:
    """The transform of evaluation and of every later use: `transform(image) -> [3, H, W]`."""
    return EvalTransform(config, crops)


def normalised(images: Sequence[np.ndarray] | np.ndarray, config: InputConfig) -> torch.Tensor:
    """Bytes, each `[H, W, 3]`, to float32 `[N, 3, H, W]`, channels last in memory.

    The same numbers as one image at a time: divide by 255, subtract the mean, divide by std.
    """
    stacked = np.stack(list(images)) if len(images) else np.empty((0, *config.size, 3), np.uint8)
    batch = torch.from_numpy(stacked).to(torch.float32)
    mean, std = torch.tensor(config.mean), torch.tensor(config.std)
    return batch.div_(255).sub_(mean).div_(std).permute(0, 3, 1, 2)


def _resized(image: Image.Image, shorter_side: int) -> np.ndarray:
    if min(image.size) != shorter_side:
        image = tv.resize(image, [shorter_side], v2.InterpolationMode.BILINEAR)
    return np.asarray(image)


def _centre(array: np.ndarray, height: int, width: int) -> tuple[int, int]:
    """Where torchvision's and the runtime's centre crop begins: top, left."""
    return round((array.shape[0] - height) / 2), round((array.shape[1] - width) / 2)

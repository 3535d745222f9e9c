"""What happens to an image before the network sees it, in training and in evaluation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as tv

from prunion.trainer.config_tables import InputConfig

__all__ = ["EvalTransform", "TrainTransform", "eval_transform", "train_transform"]

# Training crops from an image this much larger than the crop: 72 pixels for 64.
CROP_MARGIN = 1.125


@dataclass(frozen=True)
class EvalTransform:
    """Resize the shorter side (Pillow's bilinear), crop the centre, normalise.

    Only what Pillow and numpy can repeat exactly: the runtime does the same without torch.
    """

    input: InputConfig

    @property
    def shorter_side(self) -> int:
        """What the shorter side is resized to, in pixels."""
        return self.input.shorter_side

    def __call__(self, image: Image.Image) -> torch.Tensor:
        """PIL RGB to float32 `[3, H, W]`."""
        image = _resized(image, self.shorter_side)
        return _normalised(tv.center_crop(image, list(self.input.size)), self.input)


@dataclass(frozen=True)
class TrainTransform:
    """The evaluation's geometry, or a random crop from a slightly larger image; maybe mirrored."""

    input: InputConfig
    mirror: bool
    crop: bool

    @property
    def shorter_side(self) -> int:
        """What the shorter side is resized to, in pixels."""
        if not self.crop:
            return self.input.shorter_side
        return max(self.input.shorter_side, round(CROP_MARGIN * max(self.input.size)))

    def __call__(self, image: Image.Image, rng: np.random.Generator) -> torch.Tensor:
        """PIL RGB to float32 `[3, H, W]`; every random choice comes from `rng`."""
        image = _resized(image, self.shorter_side)
        height, width = self.input.size
        if self.crop:
            top = int(rng.integers(image.height - height + 1))
            left = int(rng.integers(image.width - width + 1))
            image = tv.crop(image, top, left, height, width)
        else:
            image = tv.center_crop(image, [height, width])
        if self.mirror and rng.random() < 0.5:
            image = tv.horizontal_flip(image)
        return _normalised(image, self.input)


def train_transform(config: InputConfig, mirror: bool, crop: bool) -> TrainTransform:
    """The training transform of a domain: `transform(image, rng) -> [3, H, W]`."""
    return TrainTransform(config, mirror, crop)


def eval_transform(config: InputConfig) -> EvalTransform:
    """The transform of evaluation and of every later use: `transform(image) -> [3, H, W]`."""
    return EvalTransform(config)


def _resized(image: Image.Image, shorter_side: int) -> Image.Image:
    return tv.resize(image, [shorter_side], v2.InterpolationMode.BILINEAR)


def _normalised(image: Image.Image, config: InputConfig) -> torch.Tensor:
    pixels = tv.to_dtype(tv.pil_to_tensor(image), torch.float32, scale=True)
    return tv.normalize(pixels, list(config.mean), list(config.std), inplace=True)

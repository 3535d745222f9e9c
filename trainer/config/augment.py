"""The key `augment` of a run file: how training changes images beyond cropping and mirroring."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields

from prunion.runtime.base import shown
from prunion.runtime.errors import ConfigError
from prunion.trainer.config.checks import check_int, check_keys, check_number, key_of

__all__ = ["AugmentConfig", "as_augment"]

MOST_MAGNITUDE = 30


@dataclass(frozen=True)
class AugmentConfig:
    """Each is off at 0.

    Attributes:
        randaugment: magnitude, 0 … 30, of two operations for each image (Cubuk et al. 2020,
            arXiv:1909.13719).
        colour: brightness, contrast and saturation change by up to this share.
        erasing: probability of a rectangle filled with the mean colour (Zhong et al. 2020,
            arXiv:1708.04896).
        mixup: α of a batch's images added to each other (Zhang et al. 2018, arXiv:1710.09412).
        cutmix: α of rectangles pasted from another image (Yun et al. 2019, arXiv:1905.04899); with
            `mixup` too, each batch is mixed in one of the two ways.
        rescale: a crop is this share of the image or more, with sides of 3:4 to 4:3, resized to the
            input (Szegedy et al. 2015, arXiv:1409.4842), in place of one of the input's own size.
    """

    randaugment: int = 0
    colour: float = 0.0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0
    rescale: float = 0.0

    def check(self, table: str) -> AugmentConfig:
        """Itself. Raises ConfigError if a value is out of range, naming it in `table`."""
        check_int(table, "randaugment", self.randaugment, 0, MOST_MAGNITUDE)
        for key in ("colour", "erasing", "rescale"):
            check_number(table, key, getattr(self, key), 0, 1)
        for key in ("mixup", "cutmix"):
            check_number(table, key, getattr(self, key), 0, 10)
        return self

    @property
    def mixes(self) -> bool:
        """Whether images of a batch are mixed."""
        return bool(self.mixup or self.cutmix)


def as_augment(table: str, value: object) -> AugmentConfig:
    """What `augment` of a table says. Raises ConfigError in one line if it is wrong."""
    place = f"{table}.augment"
    if isinstance(value, AugmentConfig):
        return value.check(place)
    if not isinstance(value, Mapping):
        raise ConfigError(
            f"{key_of(table, 'augment')} is {shown(value)}: give a table such as "
            "augment = { randaugment = 9, erasing = 0.25 }, or {} for none"
        )
    check_keys(place, value, [f.name for f in fields(AugmentConfig)])
    return AugmentConfig(**value).check(place)

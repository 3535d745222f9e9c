"""The tables of a run file that say which network, and what it sees."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from prunion.runtime.base import Orientation, shown
from prunion.runtime.bundle import MAX_RESIZE, MAX_SIDE
from prunion.runtime.errors import ConfigError
from prunion.trainer.config.checks import (
    BackboneSource,
    WeightMatch,
    check_choice,
    check_int,
    check_table,
    check_text,
    check_triple,
)

__all__ = ["BackboneConfig", "InputConfig"]

FUNCTION = re.compile(r".*[^:\s]:[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class BackboneConfig:
    """Which pretrained network to prune, and where its weights come from.

    Attributes:
        name: of the network; for `source = "python"` the function that makes it, as
            `MODULE:FUNCTION` or `FILE.py:FUNCTION`.
        cut: the last module that stays of the network; None takes off the classifier alone.
        keep: layers whose channels are never removed, by name or pattern.
        arguments: by keyword, of that function; plain JSON values.
        folder: where its file or module is looked for first: that of the run file.
    """

    name: str
    source: BackboneSource = "torchvision"
    weights: str = "default"
    match: WeightMatch = "name"
    cut: str | None = None
    keep: tuple[str, ...] = ()
    arguments: Mapping[str, Any] = field(default_factory=dict)
    folder: str = ""

    def __post_init__(self) -> None:
        check_text("backbone", "name", self.name)
        check_choice("backbone", "source", self.source, get_args(BackboneSource))
        check_text("backbone", "weights", self.weights)
        check_choice("backbone", "match", self.match, get_args(WeightMatch))
        if self.match != "name" and not self.weights_are_a_file:
            raise ConfigError(
                f'[backbone] match is "{self.match}", by which a file\'s tensors find the '
                f'network\'s, and weights is "{self.weights}": give a file, or remove match'
            )
        if self.cut is not None:
            check_text("backbone", "cut", self.cut)
        if not isinstance(self.keep, (list, tuple)):
            raise ConfigError(
                f'[backbone] keep is {shown(self.keep)}: give a list of layers, such as ["conv1"]'
            )
        for name in self.keep:
            check_text("backbone", "keep", name)
        object.__setattr__(self, "keep", tuple(self.keep))
        self._check_python()

    def _check_python(self) -> None:
        check_text("backbone", "folder", self.folder, empty=True)
        check_table("backbone.arguments", self.arguments)
        if self.source != "python":
            for key in ("arguments", "folder"):
                if getattr(self, key):
                    raise ConfigError(
                        f'[backbone] {key} goes with source = "python", this is "{self.source}": '
                        "remove it"
                    )
            return
        if not FUNCTION.fullmatch(self.name):
            raise ConfigError(
                f"[backbone] name is {shown(self.name)}: name the function that makes the network, "
                'as "my_models:make_net" or "nets/my_net.py:make_net"'
            )
        if self.weights == "none":
            raise ConfigError(
                '[backbone] weights is "none", but a network of source "python" comes with the '
                "weights that its function gives it: remove the key, or give a file"
            )
        for key, value in self.arguments.items():
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError, RecursionError):
                raise ConfigError(
                    f"[backbone] arguments: {key} is {shown(value)}: give strings, numbers, true "
                    "or false, and lists and tables of them"
                ) from None

    @property
    def weights_are_a_file(self) -> bool:
        """False for "default" (the library's own download) and "none" (random weights)."""
        return self.weights not in ("default", "none")

    def check_file(self) -> None:
        """Raise ConfigError if the file of weights does not exist."""
        if self.weights_are_a_file and not _is_file(self.weights):
            raise ConfigError(
                f"[backbone] weights is {self.weights}, which is not a file: correct the path, or "
                'write "default" to let the library download its own'
            )


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name that is too long for the system, a folder closed to us
        return False


@dataclass(frozen=True)
class InputConfig:
    """What the network sees: size in pixels, and the normalisation of RGB in 0 … 1.

    `size` may be given as one number; it is kept as `(height, width)`. `orientation` is whether
    images are turned as their EXIF says, in training, in evaluation and in the bundle.
    """

    size: tuple[int, int] = (64, 64)
    resize: int = 0
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    test_crops: int = 1
    orientation: Orientation = "exif"

    def __post_init__(self) -> None:
        size = self.size
        sides = size if isinstance(size, (list, tuple)) else (size, size)
        if len(sides) != 2:
            raise ConfigError(f"[input] size is {shown(size)}: give one number or [height, width]")
        height, width = (check_int("input", "size", side, 8, MAX_SIDE) for side in sides)
        check_int("input", "resize", self.resize, 0, MAX_RESIZE)
        if 0 < self.resize < max(height, width):
            raise ConfigError(
                f"[input] resize is {self.resize}, smaller than size: the crop would leave the "
                f"image; give at least {max(height, width)}, or 0 for exactly that"
            )
        if type(self.test_crops) is not int or self.test_crops not in (1, 5, 10):
            raise ConfigError(f"[input] test_crops is {shown(self.test_crops)}: use 1, 5 or 10")
        if self.test_crops > 1 and self.resize <= max(height, width):
            raise ConfigError(
                f"[input] test_crops is {self.test_crops}, but images are resized to the crop's "
                f"own size: give resize more than {max(height, width)}, or test_crops = 1"
            )
        check_choice("input", "orientation", self.orientation, get_args(Orientation))
        # One spelling inside, whichever of the accepted ones the file used.
        object.__setattr__(self, "size", (height, width))
        object.__setattr__(self, "mean", check_triple("input", "mean", self.mean))
        object.__setattr__(self, "std", check_triple("input", "std", self.std, open_low=True))

    @property
    def height(self) -> int:
        """Rows of the network's input."""
        return self.size[0]

    @property
    def width(self) -> int:
        """Columns of the network's input."""
        return self.size[1]

    def crops(self, mirror: bool) -> int:
        """Views of a test image: mirrored ones only where the domain may be mirrored."""
        return self.test_crops if mirror or self.test_crops == 1 else 5

    @property
    def shorter_side(self) -> int:
        """What an image's shorter side is resized to before the centre crop, in pixels."""
        return self.resize or max(self.size)

"""What is asked of a network before training, of noise and of weights as if they had learnt."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator

import torch
from torch import fx, nn

from prunion.runtime.base import relative_error
from prunion.runtime.errors import UnsupportedGraphError
from prunion.runtime.graph import beside_others

__all__ = ["SAME", "check_batch", "check_same", "example_images", "features_of", "moved"]

SAME = 1e-3  # of the largest feature; two orders of float32 sums differ by less
IMAGES = 3  # whichever come to stand beside each other in a batch, some differ
TINY = 1e-3  # a tensor with nothing larger hides what stands behind it, as zeros do
SMALL = 0.1  # the same of a tensor of one value; LayerScale begins at 1e-6 to 0.1


def example_images(backbone: fx.GraphModule) -> torch.Tensor:
    """Three images of noise, `[3, 3, H, W]`, that leave torch's own random numbers alone."""
    image = next(n for n in backbone.graph.nodes if n.op == "placeholder")
    size = tuple(int(n) for n in image.meta["val"].shape[1:])
    return torch.randn(IMAGES, *size, generator=torch.Generator().manual_seed(0))


def features_of(trunk: nn.Module, *inputs: object) -> torch.Tensor:
    """Features `[N, F]` in evaluation's form; the trunk is left in the mode it was in."""
    training = trunk.training
    with torch.no_grad():
        features: torch.Tensor = trunk.eval()(*inputs)
    trunk.train(training)
    return features


def check_same(expected: torch.Tensor, got: torch.Tensor) -> None:
    """The masked network starts as the backbone; everything later is compared with the former."""
    error = relative_error(expected, got)
    if bool(expected.isfinite().all()) and not error <= SAME:
        raise UnsupportedGraphError(
            f"with every channel on, the masked network differs from the backbone by {error:.1e} "
            "of its largest feature: please report this network as a bug, or choose another"
        )


def check_batch(backbone: nn.Module, images: torch.Tensor) -> None:
    """Every image is answered for itself: batches mix domains, and servers mix requests.

    Asked of weights that are moved, and of those that are there: either may overflow.

    Raises UnsupportedGraphError where an image's features depend on the others in its batch.
    """
    with moved(backbone):
        apart = _depends_on_batch(backbone, images)
    if apart or _depends_on_batch(backbone, images):
        raise UnsupportedGraphError(
            "the network's features of an image depend on the others in its batch (a norm or a "
            "mean over the batch): compute them from the image alone"
        )


def _depends_on_batch(backbone: nn.Module, images: torch.Tensor) -> bool:
    # Each of them: one may depend on the first alone, which then answers as it does by itself.
    alone = torch.cat([features_of(backbone, image) for image in images.split(1)])
    largest = float(alone.abs().max())
    if not math.isfinite(largest):
        return False
    for rows in map(torch.from_numpy, beside_others(len(images), *images.shape[2:])):
        error = float((features_of(backbone, images[rows]) - alone[rows]).abs().max())
        if not error <= SAME * largest:
            return True
    return False


@contextlib.contextmanager
def moved(module: nn.Module) -> Iterator[None]:
    """Inside, no parameter is 0 or all one value, as if it had learnt; then all is as it was.

    Behind a scale or a layer that begins at 0 (ReZero, LayerScale, a block's last convolution) a
    fault cannot be seen, and training brings it out. Torch's own random numbers stay as they are.
    """
    random = torch.Generator().manual_seed(0)
    held: list[tuple[torch.Tensor, torch.Tensor]] = []
    with torch.no_grad():
        try:
            for value in (p.data for p in module.parameters() if p.is_floating_point()):
                if value.numel() and (new := _moved(value, random)) is not None:
                    held.append((value, value.clone()))
                    value.copy_(new)
            yield
        finally:
            for value, before in held:
                value.copy_(before)


def _moved(value: torch.Tensor, random: torch.Generator) -> torch.Tensor | None:
    """Other numbers of a sane size where nothing has learnt yet; None where all has."""
    largest = float(value.abs().max())
    one_value = bool(value.min() == value.max())
    if one_value and largest >= SMALL:  # a little: it may be a divisor, or multiplied often
        drawn = torch.rand(value.shape, generator=random)
        return value * (1 + 0.1 * (1 + drawn)).to(value)
    still = torch.ones_like(value, dtype=torch.bool) if one_value or largest < TINY else value == 0
    if not bool(still.any()):
        return None
    drawn = torch.rand(value.shape, generator=random)
    fan_in = value[0].numel() if value.dim() > 1 else 1
    if fan_in > 1:  # as layers are drawn, so that what comes out is of the size of what goes in
        drawn = (2 * drawn - 1) * (3 / fan_in) ** 0.5
    else:  # a scale or a shift: none of them near 0, and of one sign, as most scales have
        drawn = 0.5 + 0.5 * drawn
    return torch.where(still, drawn.to(value), value)

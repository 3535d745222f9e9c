"""A fold changes how a network is computed, and no answer of it: what says so, or stops."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from prunion.runtime.base import relative_error
from prunion.runtime.errors import VerificationError
from prunion.trainer.network.checks import SAME, example_images
from prunion.trainer.network.masked import DomainNet

__all__ = ["unchanged"]


@contextmanager
def unchanged(net: DomainNet, what: str) -> Iterator[None]:
    """Inside, weights and graph of a network may change, and each domain's answers may not.

    Everything later is compared with the network as it is then, so nothing else would notice.

    Args:
        what: is done, for the message, such as "folding the adapters".

    Raises VerificationError if a domain's features of an image of noise differ.
    """
    expected = _features(net)
    yield
    for domain, (before, after) in enumerate(zip(expected, _features(net), strict=True)):
        error = relative_error(before, after)
        if bool(before.isfinite().all()) and not error <= SAME:
            raise VerificationError(
                f"{what} changed what domain {domain + 1} of {len(expected)} answers, by "
                f"{error:.1e} of its largest feature: please report this network as a bug, or "
                "train it with another [train] method"
            )


@torch.no_grad()
def _features(net: DomainNet) -> torch.Tensor:
    """`[D, F]` of one image for each domain, as in evaluation; the mode stays what it was."""
    training = net.training
    image = example_images(net.trunk)[:1].to(net.switches.device)
    domains = range(len(net.classes))
    # One at a time: some methods have a trunk for each domain.
    found = [net.eval().features(image, [(domain, 1)])[0] for domain in domains]
    net.train(training)
    return torch.cat(found)

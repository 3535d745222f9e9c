"""A run whose numbers stopped being numbers ends at once, and says where it can go on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from prunion.runtime.errors import PrunionError
from prunion.trainer.network import DomainNet

__all__ = ["check_losses", "check_network"]

ADVICE = "lower [train] lr or trunk_lr and start again"


def check_losses(losses: Mapping[int, float], names: Sequence[str], where: str, saved: str) -> None:
    """Raise PrunionError if the loss of a domain, by number, is NaN or infinite.

    Args:
        where: the step, for the message.
        saved: the last good state, or that there is none.
    """
    for domain, loss in losses.items():
        if not math.isfinite(loss):
            raise PrunionError(
                f"{where}: the loss of domain {names[domain]} became {loss}: {ADVICE}; {saved}"
            )


def check_network(net: DomainNet, where: str, saved: str) -> None:
    """Raise PrunionError if a parameter or a statistic is NaN or infinite.

    The last update before a state is saved is not seen by any loss.
    """
    values = {k: v for k, v in net.state_dict().items() if v.is_floating_point()}
    finite = torch.stack([torch.isfinite(value).all() for value in values.values()])
    for name, good in zip(values, finite.tolist(), strict=True):  # one wait for a GPU, not one each
        if not good:
            raise PrunionError(f"{where}: {name} is no longer finite: {ADVICE}; {saved}")

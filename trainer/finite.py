"""A run whose numbers stopped being numbers ends at once, and says where it can go on."""

from __future__ import annotations

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
        if not torch.isfinite(torch.tensor(loss)):
            raise PrunionError(
                f"{where}: the loss of domain {names[domain]} became {loss}: {ADVICE}; {saved}"
            )


def check_network(net: DomainNet, where: str, saved: str) -> None:
    """Raise PrunionError if a parameter or a statistic is NaN or infinite.

    The last update before a state is saved is not seen by any loss.
    """
    for name, value in net.state_dict().items():
        if value.is_floating_point() and not torch.isfinite(value).all():
            raise PrunionError(f"{where}: {name} is no longer finite: {ADVICE}; {saved}")

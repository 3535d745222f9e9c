"""Half precision without losing small gradients: the loss is scaled up, its gradients down again.

Micikevicius et al. 2018, "Mixed Precision Training", arXiv:1710.03740, section 3.2: gradients
below 2⁻²⁴ are zero in float16. The scale is found as in torch's GradScaler: halved where a gradient
overflows, and that step is left out; doubled after many steps without. Torch's own asks one
optimiser alone, while here switches learn beside it and all processes leave out the same steps.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch

from prunion.runtime.errors import PrunionError
from prunion.trainer.config import Precision
from prunion.trainer.processes import Processes

__all__ = ["LossScale", "autocast_of"]

KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16}
START, LEAST = 2.0**16, 2.0**-10
PATIENCE = 2000  # steps without overflow, until the scale is doubled


def autocast_of(device: torch.device, precision: Precision) -> torch.autocast:
    """The context in which the network computes with a run's `precision`."""
    kind = KINDS.get(precision)
    return torch.autocast(device.type, kind or torch.bfloat16, enabled=kind is not None)


class LossScale:
    """What the loss is multiplied by; 1 for ever where the run is not in half precision."""

    def __init__(self, precision: Precision) -> None:
        self.works = precision == "fp16"
        self.value = START if self.works else 1.0
        self.steps = 0  # since it last changed

    def unscale(self, gradients: Iterable[torch.Tensor | None]) -> bool:
        """Divide gradients by the scale, in place; whether all are finite."""
        if not self.works:
            return True
        found = [gradient for gradient in gradients if gradient is not None]
        torch._foreach_mul_(found, 1 / self.value)
        largest = torch.stack(list(torch._foreach_norm(found, math.inf)))
        return bool(largest.isfinite().all())

    def takes(self, processes: Processes, *, finite: bool, where: str) -> bool:
        """Whether the step is taken, the same in every process; moves the scale.

        Args:
            finite: this process's gradients.
            where: the step, for the message.

        Raises PrunionError where gradients overflow at any scale.
        """
        if not self.works:
            return True
        if processes.any(not finite):
            self.value, self.steps = self.value / 2, 0
            if self.value < LEAST:
                raise PrunionError(
                    f"{where}: gradients overflow in float16 however the loss is scaled: set "
                    '[train] precision = "bf16" or "fp32", or lower lr and trunk_lr'
                )
            return False
        self.steps += 1
        if self.steps == PATIENCE:
            self.value, self.steps = self.value * 2, 0
        return True

    def state(self) -> list[float]:
        """Everything a resumed run needs."""
        return [self.value, self.steps]

    def restore(self, state: list[float] | None) -> None:
        """Continue from `state`; None, of a run before there was one, begins anew."""
        if state is not None:
            self.value, self.steps = float(state[0]), int(state[1])

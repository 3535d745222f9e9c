"""A running average of the network over its last epochs, which then takes its place."""

from __future__ import annotations

import torch

from prunion.trainer.network import DomainNet

__all__ = ["WeightAverage"]


class WeightAverage:
    """Exponential average of parameters and BatchNorm statistics over about `span` steps.

    It follows the network while that has few steps behind it, so that no start has to be forgotten.
    """

    def __init__(self, span: float) -> None:
        self.span = max(1.0, span)  # less than a step would overshoot
        self.steps = 0
        self.tensors: dict[str, torch.Tensor] = {}

    def update(self, net: DomainNet) -> None:
        """Take in the network as it is after a step."""
        now = _averaged(net)
        if not self.tensors:
            self.tensors = {k: v.clone() for k, v in now.items()}
        self.steps += 1
        pull = max(1 / self.span, 1 / self.steps)
        mine = [self.tensors[name] for name in now]  # a loaded state has another order
        torch._foreach_lerp_(mine, list(now.values()), pull)

    def move_into(self, net: DomainNet) -> None:
        """Give the network the average, if there is one."""
        for name, value in _averaged(net).items():
            if name in self.tensors:
                value.copy_(self.tensors[name])
        self.tensors, self.steps = {}, 0

    def statistics(self) -> list[torch.Tensor]:
        """The averages of BatchNorm's statistics, a row for each domain."""
        return [v for k, v in sorted(self.tensors.items()) if ".running_" in k]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Everything a resumed run needs."""
        return {**self.tensors, "steps": torch.tensor(self.steps)} if self.steps else {}

    def load_state_dict(self, state: dict[str, torch.Tensor], device: torch.device) -> None:
        """Continue from `state_dict` with a network on `device`."""
        self.steps = int(state["steps"]) if state else 0
        self.tensors = {k: v.to(device, copy=True) for k, v in state.items() if k != "steps"}


def _averaged(net: DomainNet) -> dict[str, torch.Tensor]:
    return {
        name: value.detach()
        for name, value in net.state_dict().items()
        if value.is_floating_point() and name != "switches"
    }

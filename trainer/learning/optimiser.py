"""Which parameters learn, how fast, what pulls them back, and the average of where they were."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from prunion.trainer.config import Phase, TrainConfig
from prunion.trainer.learning.orthogonal import matrices_of, orthogonal_step
from prunion.trainer.methods import SeriesSite
from prunion.trainer.network import DomainNet, frozen_tensors
from prunion.trainer.pruning import Schedule

__all__ = [
    "MixedOptimiser",
    "WeightAverage",
    "hold_trunk",
    "make_optimiser",
    "set_rates",
    "trunk_parameters",
]

MOMENTUM = 0.9  # of SGD


class MixedOptimiser(torch.optim.AdamW):
    """AdamW, SGD with momentum for groups that say `sgd`, Muon for those that have `matrices`.

    One state, one list of groups. `matrices` says of each parameter which ones it holds.

    Attributes:
        present: the domains whose images the step had, where not all have some in each. Parameters
            of groups that say `rows` have a row for each domain, and only these rows then move:
            an absent domain's has no gradient, and neither decay nor memory of earlier ones is to
            move it.
    """

    present: Sequence[int] | None = None

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Move every parameter that has a gradient once."""
        groups, apart = self.param_groups, self.present is not None
        for group in groups:
            if group.get("matrices"):
                self._make_orthogonal(group)
                continue
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                for domain in (self.present or ()) if group["rows"] else ():
                    self._move_row(parameter, group, domain)
                if group["sgd"] and not (apart and group["rows"]):
                    self._descend(parameter, parameter.grad, self._speed(parameter), group)
        self.param_groups = [
            x for x in groups if not (x["sgd"] or x.get("matrices") or (apart and x["rows"]))
        ]
        try:
            return super().step(closure)
        finally:
            self.param_groups = groups

    def forget(self, parameters: Iterable[torch.Tensor]) -> None:
        """Begin anew with these, as if they had never moved."""
        for parameter in parameters:
            self.state.pop(parameter, None)

    def moved_as_matrices(self) -> list[torch.Tensor]:
        """What Muon moves: unlike processors round its products of matrices unlike."""
        groups = [group["params"] for group in self.param_groups if group.get("matrices")]
        return [parameter.detach() for params in groups for parameter in params]

    def _make_orthogonal(self, group: dict[str, Any]) -> None:
        """Muon's step, of a group that has matrices."""
        for parameter, matrices in zip(group["params"], group["matrices"], strict=True):
            if parameter.grad is None:
                continue
            speed = self._speed(parameter)
            if self.present is None or not group["rows"]:
                orthogonal_step(parameter, parameter.grad, speed, matrices, group)
                continue
            one = (1, *matrices[1:])
            for row in self.present:
                orthogonal_step(parameter[row], parameter.grad[row], speed[row], one, group)

    def _speed(self, parameter: torch.Tensor) -> torch.Tensor:
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
            state["step"] = torch.zeros(())  # AdamW looks for it when a state is loaded
        speed: torch.Tensor = state["momentum_buffer"]
        return speed

    def _descend(
        self,
        parameter: torch.Tensor,
        gradient: torch.Tensor,
        speed: torch.Tensor,
        group: dict[str, Any],
    ) -> None:
        speed.mul_(MOMENTUM).add_(gradient.add(parameter, alpha=group["weight_decay"]))
        parameter.sub_(speed, alpha=group["lr"])

    def _move_row(self, parameter: torch.Tensor, group: dict[str, Any], domain: int) -> None:
        """One step of one domain's row, whose own steps alone count for AdamW's bias."""
        assert parameter.grad is not None
        row, gradient = parameter[domain], parameter.grad[domain]
        if group["sgd"]:
            self._descend(row, gradient, self._speed(parameter)[domain], group)
            return
        state = self.state[parameter]
        if "exp_avg" not in state:
            state["step"] = torch.zeros(())
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        # States of before rows were counted apart have the steps of all.
        counted = state.get("row_steps", state["step"].expand(len(parameter)).clone())
        state["row_steps"] = counted = counted.cpu()
        counted[domain] += 1
        count, (fast, slow) = float(counted[domain]), group["betas"]
        mean, square = state["exp_avg"][domain], state["exp_avg_sq"][domain]
        row.mul_(1 - group["lr"] * group["weight_decay"])
        mean.lerp_(gradient, 1 - fast)
        square.mul_(slow).addcmul_(gradient, gradient, value=1 - slow)
        size = square.sqrt().div_((1 - slow**count) ** 0.5).add_(group["eps"])
        row.addcdiv_(mean, size, value=-group["lr"] / (1 - fast**count))


def make_optimiser(
    train: TrainConfig, net: DomainNet, images: Sequence[int] = ()
) -> MixedOptimiser:
    """AdamW over BatchNorms and heads, Muon over the trunk where the run tunes it; switches apart.

    Heads move by SGD, and the trunk by AdamW, where the run says so.

    Args:
        images: training images of each domain. `small_set_decay` pulls a domain's head to zero in
            proportion to how few it has; the smallest domain feels all of it.
    """
    trunk, adapter = trunk_parameters(net), net.adapter
    shares = adapter is None or adapter.tunes  # else each domain tunes a trunk of its own
    tuned = train.trunk == "tuned" and shares
    for parameter in trunk:
        parameter.requires_grad_(tuned)
    norms = [p for m in net.norms.values() for p in m.parameters()]
    own = {"params": norms, "peak": train.own_lr, "weight_decay": 0.0, "rows": True}
    groups: list[dict[str, Any]] = [own]
    for domain, head in enumerate(net.heads):
        few = min(images) / images[domain] if images else 0.0
        decay = train.weight_decay + train.small_set_decay * few
        groups.append(
            {
                "params": list(head.parameters()),
                "peak": train.own_head_lr,
                "weight_decay": decay,
                "sgd": train.head_optimiser == "sgd",
            }
        )
    if adapter is not None:
        apart = [{"rows": adapter.by_rows, **group} for group in adapter.groups(train)]
        groups += [part for group in apart for part in _divided(group, train, len(net.heads))]
    if tuned:
        decay, shapes = train.weight_decay, [p.shape for p in trunk]
        group = {"params": trunk, "peak": train.trunk_lr, "weight_decay": decay, "shapes": shapes}
        groups += _divided(group, train)
    for group in groups:
        group["lr"] = group["peak"]
        for key in ("sgd", "switches", "rows"):
            group.setdefault(key, False)
    # On a GPU one kernel a group instead of a dozen.
    return MixedOptimiser(groups, fused=True if net.switches.is_cuda else None)


def _divided(group: dict[str, Any], train: TrainConfig, rows: int = 1) -> list[dict[str, Any]]:
    """A group of a trunk's weights, which has their `shapes`: those that Muon moves apart."""
    shapes = group.pop("shapes", None)
    if shapes is None or train.trunk_optimiser != "muon":
        return [group]
    weights = [(p, matrices_of(x, rows)) for p, x in zip(group["params"], shapes, strict=True)]
    moved, others = ([x for x in weights if bool(x[1]) is whether] for whether in (True, False))
    parts = [{**group, "params": [p for p, _ in part]} for part in (moved, others)]
    parts[0]["matrices"] = [matrices for _, matrices in moved]
    return [part for part in parts if part["params"]]


def set_rates(optimiser: torch.optim.Optimizer, schedule: Schedule, step: int) -> None:
    """Every group's learning rate as a share of its own peak; switches have a share of theirs."""
    factor, of_switches = schedule.rate(step), schedule.switch_rate(step)
    for group in optimiser.param_groups:
        group["lr"] = group["peak"] * (of_switches if group["switches"] else factor)


def hold_trunk(net: DomainNet, train: TrainConfig, phase: Phase) -> None:
    """Let the shared trunk learn from the start, or only once the switches are fixed."""
    if train.trunk_from == "settle":  # of each domain's own trunk where a method has them
        own = None if net.adapter is None or net.adapter.tunes else net.adapter.parameters()
        for parameter in trunk_parameters(net) if own is None else own:
            parameter.requires_grad_(phase == "settle")


def trunk_parameters(net: DomainNet) -> list[nn.Parameter]:
    """What all domains share and learns: not BatchNorms, adapters, or what its owner froze.

    The last by the network's graph, which says it: that a tensor learns is switched here.
    """
    apart = [*net.norms.values(), *(m for m in net.modules() if isinstance(m, SeriesSite))]
    own = {id(p) for m in apart for p in m.parameters()}
    frozen = frozen_tensors(net.graph)
    named = net.trunk.named_parameters()
    return [p for name, p in named if id(p) not in own and name not in frozen]


class WeightAverage:
    """Exponential average of parameters and BatchNorm statistics over about `span` steps.

    Of fewer steps than that it is the plain mean, so that no first value has to be forgotten.
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
        pull = max(1 / self.span, 1 / self.steps)  # the second gives the plain mean
        mine = [self.tensors[name] for name in now]  # a loaded state has another order
        torch._foreach_lerp_(mine, list(now.values()), pull)

    def move_into(self, net: DomainNet) -> None:
        """Give the network the average, if there is one, and begin anew."""
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

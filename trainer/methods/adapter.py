"""What every method with weights of a domain's own has: `W_d = g(W, θ_d)`.

The trunk's graph stays as it is. A forward pass of one domain runs it with its weights replaced,
so a method knows nothing of layers, and everything that reads the trunk knows nothing of methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import fx, nn

from prunion.runtime.bundle import UnitTable
from prunion.trainer.backbone import NORMS
from prunion.trainer.config import Phase, TrainConfig

__all__ = [
    "NUMBER_BITS",
    "SmallMatrices",
    "WeightAdapter",
    "key_of_weight",
    "numbers_in",
    "plain",
    "without_norm",
]

NUMBER_BITS = 32  # of a number, as the papers count, wherever something is told in bits


@dataclass(frozen=True)
class SmallMatrices:
    """What every domain adds to one convolution `z = f∗x`: `α_d∗x` beside it, or `P_d·z` behind it.

    Attributes:
        whole: α `[D, O, I]` or P `[D, O, O]`; None where α_d is `up[d] @ down[d]`.
        up, down: `[D, O, r]` and `[D, r, I]`.
    """

    kind: Literal["beside", "behind"]
    whole: torch.Tensor | None = None
    up: torch.Tensor | None = None
    down: torch.Tensor | None = None


class WeightAdapter(nn.Module):
    """g, and every domain's θ_d: a row for each domain of all that lies in a ParameterDict.

    Attributes:
        names: the trunk's weights that it makes anew.
        inside: whether the trunk's graph itself holds θ_d until it is finished.
        tunes: whether the shared trunk may learn along.
        share: β, the share of the cost that the run's budget allows (`keep_to`).
        by_rows: whether what learns has a row for each domain, moved by that domain's steps alone.
    """

    names: tuple[str, ...] = ()
    inside = False
    tunes = False
    share = 1.0
    by_rows = True

    @property
    def choosing(self) -> bool:
        """Whether the next step may change which weights the domains use."""
        return False

    def weights(self, shared: Mapping[str, torch.Tensor], domain: int) -> dict[str, torch.Tensor]:
        """W_d of each of `names`, differentiable by θ_d.

        Args:
            shared: W by name, each `[O, I, k, k]` or `[O, I]`.
        """
        raise NotImplementedError

    def stored(self, domain: int) -> dict[str, np.ndarray]:
        """θ_d as a pack holds it, by `PART:WEIGHT` (`prunion.runtime.bundle.own_weights`)."""
        raise NotImplementedError

    def matrices(self) -> Mapping[str, SmallMatrices]:
        """The same by the weights' names, where small matrices are all that a domain adds."""
        return {}

    def slices(self) -> Mapping[str, torch.Tensor]:
        """Which k×k slices each domain uses, bool `[D, O, I]`, where choosing is all it does."""
        return {}

    def place(self, table: UnitTable, read_by_heads: np.ndarray) -> None:
        """Be told of the trunk's channel units, and the numbers of those that heads read."""

    def keep_to(self, allowed: float, full: float) -> None:
        """Be told of a run's budget: what it allows, and what the whole network costs."""
        self.share = min(1.0, allowed / full)

    def dead_units(self) -> np.ndarray | None:
        """Units that no domain needs any more, `[U]` bool; None where it cannot know."""
        return None

    def shared_parts(self) -> dict[str, np.ndarray]:
        """What all domains have in common beside W, likewise."""
        return {}

    def base(self, shared: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """What a bundle's trunk holds in the place of W, where that is not the backbone's."""
        return {}

    def bits(self) -> int:
        """What has to be stored of θ_d for one domain beside the trunk, BatchNorm and head."""
        raise NotImplementedError

    def shared_bits(self) -> int:
        """What has to be stored once for all domains, beside the trunk."""
        return 0

    def unused_weights(self, table: UnitTable, alive: np.ndarray) -> int:
        """How many weights no domain uses, of those that `alive` units `[U]` bool leave.

        No budget counts them, and no file has to hold them.
        """
        return 0

    def least_weights(self, full: int) -> int:
        """How many of the trunk's `full` weights stay whatever the limit, where it chooses."""
        return 0

    def used_macs(self, positions: Mapping[str, int], domain: int | None) -> int | None:
        """Multiply-accumulates of the weights that a domain uses; None: of all there are.

        Args:
            positions: of each weight, for one image.
            domain: whose; None for what any domain uses.
        """
        return None

    def extra_bits(self) -> int:
        """What a file of all its domains holds beside one trunk, their BatchNorms and heads."""
        return self.shared_bits() + self.bits() * self.domains

    @property
    def domains(self) -> int:
        """How many domains have a row."""
        return len(next(iter(next(iter(self._rows())).values())))

    def groups(self, train: TrainConfig) -> list[dict[str, Any]]:
        """What learns and how: groups of the optimiser, each with its `peak` learning rate."""
        own = [p for p in self.parameters() if p.requires_grad]
        return [{"params": own, "peak": train.own_adapter_lr, "weight_decay": 0.0, "sgd": True}]

    def penalty(
        self, domains: Sequence[int], images: Sequence[int], phase: Phase
    ) -> torch.Tensor | None:
        """What a step of `domains` adds to the loss; `images` are those of every domain."""
        return None

    @torch.no_grad()
    def stepped(self, domains: Sequence[int]) -> None:
        """Be told whose images a step had, once what learns has moved."""

    @torch.no_grad()
    def advance(self, shared: Mapping[str, torch.Tensor], task: int, phase: Phase) -> bool:
        """What happens where a phase begins; called before every step, and at the run's end.

        Args:
            task: which domain's turn it is, of methods that learn one after the other.

        Returns:
            Whether all domains' weights changed, so that BatchNorm's statistics are stale.
        """
        return False

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Leave out every domain but those in `rows`, in this order."""
        for own in self._rows():
            for key, value in own.items():
                own[key] = nn.Parameter(value.detach()[rows], requires_grad=value.requires_grad)

    def _rows(self) -> list[nn.ParameterDict]:
        return [child for child in self.children() if isinstance(child, nn.ParameterDict)]


def numbers_in(*rows: nn.ParameterDict) -> int:
    """How many numbers one domain has in all of these."""
    return sum(int(value[0].numel()) for row in rows for value in row.values())


def key_of_weight(name: str) -> str:
    """A weight's name as a parameter's: torch takes no dots in it."""
    return name.replace(".", "/")


def plain(value: torch.Tensor) -> np.ndarray:
    """A tensor as a file holds it, float32."""
    array: np.ndarray = value.detach().cpu().float().numpy()
    return array


def without_norm(trunk: fx.GraphModule, names: Iterable[str]) -> set[str]:
    """Which of the weights belong to a layer that no per-domain BatchNorm reads directly."""
    followed = set()
    for node in trunk.graph.nodes:
        if node.op == "get_attr":
            readers = {user for layer in node.users for user in layer.users}
            if readers and all(str(user.target).startswith(NORMS) for user in readers):
                followed.add(str(node.target))
    return set(names) - followed

"""One set of weights that the domains divide among themselves, one after the other.

Mallya and Lazebnik 2018, "PackNet: Adding Multiple Tasks to a Single Network by Iterative Pruning",
arXiv:1711.05769, section 3: every weight has one owner; a task learns the weights that are free,
keeps the largest of each layer and gives the others back, and uses what it and those before it own.
Biases and BatchNorm stay the first task's, the backbone's own.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn

from prunion.runtime.bundle import pack_bits
from prunion.trainer.config import Phase, TrainConfig
from prunion.trainer.methods.adapter import WeightAdapter, key_of_weight

__all__ = ["OwnedWeights"]

FREE, SOURCE = 0, 1  # owners; the first domain's number follows


class OwnedWeights(WeightAdapter):
    """What each task left (`fixed`), what the present one learns (`free`), and whose is which.

    The backbone is the first task: it keeps its own largest weights, and is not tuned on, which
    would need its images.
    """

    by_rows = False
    tasks: torch.Tensor
    begun: torch.Tensor
    pruned: torch.Tensor
    last: torch.Tensor

    def __init__(
        self, train: TrainConfig, shared: Mapping[str, torch.Tensor], domains: int
    ) -> None:
        """Before the first domain's turn; there are at most `MOST_TURNS`."""
        super().__init__()
        self.names, self.given_back = tuple(shared), train.packnet_prune
        order = torch.arange(domains)
        # By domain: its turn, from 0.
        tasks = order.flip(0) if train.packnet_order == "reversed" else order
        self.register_buffer("tasks", tasks.clone())
        self.register_buffer("begun", torch.tensor(0))
        self.register_buffer("pruned", torch.tensor(False))
        self.register_buffer("last", torch.tensor(domains))
        self.free = [nn.Parameter(torch.zeros_like(w)) for w in shared.values()]
        for name, free in zip(self.names, self.free, strict=True):
            self.register_parameter(f"free_{key_of_weight(name)}", free)
        for name, weight in shared.items():
            owned = torch.full(weight.shape, SOURCE, dtype=torch.uint8)
            owned[_smallest(weight.detach(), owned == SOURCE, train.packnet_source)] = FREE
            self.register_buffer(f"owner_{key_of_weight(name)}", owned.to(weight.device))
            fixed = torch.where(owned == SOURCE, weight.detach(), 0.0)
            self.register_buffer(f"fixed_{key_of_weight(name)}", fixed)

    @property
    def domains(self) -> int:
        """How many have a turn."""
        return len(self.tasks)

    def weights(self, shared: Mapping[str, torch.Tensor], domain: int) -> dict[str, torch.Tensor]:
        """What the domain and those before it own; W itself only said where to start."""
        number, now = self._number(domain), self._now()
        found = {}
        for name, free in zip(self.names, self.free, strict=True):
            owner = self._owner(name)
            weight = torch.where((owner >= SOURCE) & (owner <= number), self._fixed(name), 0.0)
            found[name] = weight + torch.where(owner == now, free, 0.0) if now <= number else weight
        return found

    @torch.no_grad()
    def advance(self, shared: Mapping[str, torch.Tensor], task: int, phase: Phase) -> bool:
        """Begin the next task's turn; give back its smallest weights when it settles.

        True if a turn ended with that, and nothing was trained since.
        """
        stale = False
        while int(self.begun) <= task:
            stale = self._finish() or stale
            self.begun += 1
            self.pruned.fill_(False)
            for name, free in zip(self.names, self.free, strict=True):
                owner = self._owner(name)
                owner[owner == FREE] = self._now()
                free.zero_()
        if phase == "settle" and not self.pruned:
            self._prune()
        return stale

    def _finish(self) -> bool:
        """The end of a turn: what it owns stays as it is. True if only now some is given back."""
        if not self.begun:
            return False
        if late := not self.pruned:
            self._prune()
        for name, free in zip(self.names, self.free, strict=True):
            self._fixed(name).add_(torch.where(self._owner(name) == self._now(), free, 0.0))
        return late

    def _prune(self) -> None:
        self.pruned.fill_(True)
        if int(self.begun) == int(self.last):  # the last keeps all
            return
        for name, free in zip(self.names, self.free, strict=True):
            owner = self._owner(name)
            owner[_smallest(free, owner == self._now(), self.given_back)] = FREE

    def stored(self, domain: int) -> dict[str, np.ndarray]:
        """The domain's turn, from 1."""
        turn = np.array([self._number(domain) - SOURCE], np.uint8)
        return {f"task:{name}": turn for name in self.names}

    def shared_parts(self) -> dict[str, np.ndarray]:
        """The turns in which weights were taken, a row of bits for each binary digit.

        What nobody owns is 0, whosever it is called: the backbone's, whose turn is the 0th.
        """
        found = {}
        for name in self.names:
            turn = self._owner(name).clamp(min=SOURCE).sub(SOURCE).cpu().numpy().reshape(-1)
            rows = [pack_bits(turn >> place & 1) for place in range(self._digits())]
            found[f"turns:{name}"] = np.stack(rows)
        return found

    def base(self, shared: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Everybody's weights beside each other."""
        found = {}
        for name, free in zip(self.names, self.free, strict=True):
            now = torch.where(self._owner(name) == self._now(), free.detach(), 0.0)
            found[name] = self._fixed(name) + now
        return found

    def bits(self) -> int:
        """Nothing: which weights are a domain's follows from its number."""
        return 0

    def shared_bits(self) -> int:
        """The turns: ⌈log₂ T⌉ of each weight, where T counts the backbone too."""
        return self._digits() * sum(free.numel() for free in self.free)

    def keep_rows(self, rows: torch.Tensor) -> None:
        """Forget the turns of the other domains; what they own stays, later ones may use it."""
        self.tasks = self.tasks[rows]

    def _number(self, domain: int) -> int:
        return SOURCE + 1 + int(self.tasks[domain])

    def _now(self) -> int:
        return SOURCE + int(self.begun)

    def _digits(self) -> int:
        """Of the last turn in binary; the last domain takes all that is free."""
        return int(self.last).bit_length()

    def _owner(self, name: str) -> torch.Tensor:
        return self.get_buffer(f"owner_{key_of_weight(name)}")

    def _fixed(self, name: str) -> torch.Tensor:
        return self.get_buffer(f"fixed_{key_of_weight(name)}")


def _smallest(weight: torch.Tensor, own: torch.Tensor, share: float) -> torch.Tensor:
    """Which of a layer's weights are the smallest `share` of those that are `own`, bool."""
    sizes = weight.abs()[own]
    count = int(share * len(sizes))
    if not count:
        return torch.zeros_like(own)
    places = own.flatten().nonzero().flatten()[sizes.argsort(stable=True)[:count]]
    found = torch.zeros_like(own).flatten()
    found[places] = True
    return found.view(own.shape)

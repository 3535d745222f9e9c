"""A switch for every input channel of every filter, as the papers have them.

Eqs. 2 and 3 of dos Santos, Berriel, Oliveira-Santos, Sebe and Almeida 2023, "Budget-Aware Pruning:
Handling Multiple Domains with Less Parameters", arXiv:2309.11464, and Berriel et al. 2019,
"Budget-Aware Adapters for Multi-Domain Learning", arXiv:1905.06242: `W_d = W ∘ m_d` with one bit
for each k×k slice, on where its score is positive, which gets the bit's gradient unchanged. The
losses are eqs. 4 to 9 of the former; a slice costs its weights.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from prunion.runtime.bundle import UnitTable, pack_bits
from prunion.trainer.config import Phase, TrainConfig
from prunion.trainer.methods.adapter import WeightAdapter, key_of_weight
from prunion.trainer.methods.equations import PAPER_LAMBDA, Multiplier, loss_of_sharing
from prunion.trainer.methods.slices.cut import best_slices, in_vain, one_path

__all__ = ["SliceSwitches"]

START = 1e-3  # of every score
LEAST = 1e-9  # size of a score that is on or off by its sign
AHEAD = 1e30  # of every score, also added up over domains


class SliceSwitches(WeightAdapter):
    """Scores `[D, O·I]` of every weight; they learn until settling, and are then cut to the budget.

    Attributes:
        allowed: the most weights that may be in use; β of them all, where no run says.
    """

    lambdas: torch.Tensor
    fixed: torch.Tensor

    def __init__(
        self,
        train: TrainConfig,
        shared: Mapping[str, torch.Tensor],
        domains: int,
        kept: Collection[str] = (),
    ) -> None:
        """Every switch on; those of the weights `kept` stay so."""
        super().__init__()
        self.names, self.train_config = tuple(shared), train
        self.by_rows = train.sharing == "none"  # else its loss moves the absent ones too (eq. 5)
        self.shapes = {name: weight.shape for name, weight in shared.items()}
        self.scores = nn.ParameterDict()
        for name in shared:
            scores = torch.full((domains, self._count(name)), START)
            self.scores[key_of_weight(name)] = nn.Parameter(scores, requires_grad=name not in kept)
        self.prices = {name: weight[0, 0].numel() for name, weight in shared.items()}
        self.held = frozenset(kept) & shared.keys()
        self.whole = sum(weight.numel() for weight in shared.values())
        # The sharing loss's first, then each domain's.
        self.register_buffer("lambdas", torch.full((domains + 1,), PAPER_LAMBDA))
        self.register_buffer("fixed", torch.tensor(False))
        self.allowed: float | None = None
        self._table: UnitTable | None = None
        self._read_by_heads = np.zeros(0, np.int64)

    @property
    def choosing(self) -> bool:
        """Until the cut."""
        return not bool(self.fixed)

    def weights(self, shared: Mapping[str, torch.Tensor], domain: int) -> dict[str, torch.Tensor]:
        """`W ∘ m_d`."""
        found = {}
        for name in self.names:
            bits = self._bits(name)[domain].view(*self.shapes[name][:2])
            found[name] = shared[name] * bits[(..., *[None] * (len(self.shapes[name]) - 2))]
        return found

    def penalty(
        self, domains: Sequence[int], images: Sequence[int], phase: Phase
    ) -> torch.Tensor | None:
        """Eq. 5 beside the task: the step's own domains' budgets, and the sharing loss of all.

        Each λ takes one step of dual ascent. None where nothing is charged for, or nothing learns.
        """
        kind = self.train_config.sharing
        # The whole network is any budget's; but to differ costs something in it, too (eqs. 6, 9).
        if self.fixed or (self.share >= 1 and kind not in ("intersection", "jaccard")):
            return None
        bits = {name: self._bits(name) for name in self.names}
        costs = sum(bits[name].sum(1) * self.prices[name] for name in self.names) / self.whole
        assert isinstance(costs, torch.Tensor)
        total = costs.new_zeros(())
        if self.train_config.domain_budget is not False:
            for domain in domains:
                loss = costs[domain] - self.share
                total = total + self._ascended(1 + domain, float(loss.detach()) / self.share) * loss
        if kind != "none":
            loss = loss_of_sharing(kind, partial(self._cost, bits), self.share, self.whole)
            violation = float(loss.detach()) / (self.share if kind == "union" else 1.0)
            total = total + self._ascended(0, violation) * loss
        return total if total.requires_grad else None

    def _cost(
        self, bits: Mapping[str, torch.Tensor], together: Callable[[torch.Tensor], torch.Tensor]
    ) -> torch.Tensor:
        """Weights that domains have together, by the union or the intersection of their bits."""
        total = sum(together(b).sum() * self.prices[name] for name, b in bits.items())
        assert isinstance(total, torch.Tensor)
        return total

    def _ascended(self, place: int, violation: float) -> float:
        weight = self.train_config.sharing_weight
        if place == 0 and not isinstance(weight, str):
            return weight * (violation > 0)
        multiplier = Multiplier(value=float(self.lambdas[place]))
        now = multiplier.update(violation)
        self.lambdas[place] = multiplier.value
        return now

    @torch.no_grad()
    def advance(self, shared: Mapping[str, torch.Tensor], task: int, phase: Phase) -> bool:
        """Cut what is over the budget once settling begins, exact to a slice; True if it did."""
        if self.fixed:
            self._stand_still()  # of a run that goes on, too
        if phase != "settle" or self.fixed:
            return False
        self.fixed.fill_(True)
        self._stand_still()
        learned = {name: self.scores[key_of_weight(name)].clone() for name in self.names}
        self._cut(learned)
        if not all(bits.flatten(1).any(1).all() for bits in self.slices().values()):
            # A layer that a domain has nothing of lets no image through: all get one answer.
            self._cut(learned, through=True)
        return True

    def _cut(self, learned: Mapping[str, torch.Tensor], *, through: bool = False) -> None:
        """Keep the best of the scores `learned`; with `through` a slice of each layer before all.

        These every domain has, and whole paths of them: single slices that do not meet are dead,
        and what is buried is not paid for.
        """
        scores = torch.cat([learned[name] for name in self.names], 1)
        shaped = {name: learned[name].view(-1, *self.shapes[name][:2]) for name in self.names}
        joint = self.train_config.cut != "domains"
        path = torch.zeros_like(scores, dtype=torch.bool)
        if through and joint:
            path[:] = one_path({name: s.amax(0) for name, s in shaped.items()}, self._table)
        elif through:
            for row in range(len(scores)):
                path[row] = one_path({name: s[row] for name, s in shaped.items()}, self._table)
        held = torch.cat([torch.full_like(learned[n][0], n in self.held) for n in self.names]) > 0
        worth = scores.clamp(min=0).masked_fill(path, AHEAD)
        worth = worth.masked_fill(held, torch.inf)  # they are paid for first
        prices = torch.cat([scores.new_full((self._count(n),), self.prices[n]) for n in self.names])
        allowed = self.share * self.whole if self.allowed is None else self.allowed
        least, firm = scores.abs().clamp(min=LEAST), path.any(0)
        vain = torch.ones_like(firm)
        while vain.any():
            rows = worth.sum(0, keepdim=True) if joint else worth
            kept = torch.stack([best_slices(x, prices, allowed) for x in rows]).expand_as(scores)
            left = torch.where(kept & path, least, torch.where(kept | held, scores, -least))
            parts = left.split([self._count(name) for name in self.names], 1)
            for name, part in zip(self.names, parts, strict=True):
                self.scores[key_of_weight(name)].copy_(part)
            self.bury()
            bought, wanted = kept.any(0) & ~firm, worth.nan_to_num(posinf=0).sum(0)
            vain = in_vain(bought, wanted, self.shapes, self._table, self.dead_units())
            vain &= ~firm
            worth = worth.masked_fill(vain, 0)

    def place(self, table: UnitTable, read_by_heads: np.ndarray) -> None:
        """So that a cut that leaves a channel nothing takes it whole."""
        self._table, self._read_by_heads = table, read_by_heads

    def slices(self) -> Mapping[str, torch.Tensor]:
        """The bits, of every weight."""
        return {n: self._on(n).view(-1, *self.shapes[n][:2]) for n in self.names}

    def dead_units(self) -> np.ndarray | None:
        """Channels that nothing makes any more, or nothing reads; heads read what they read."""
        if self._table is None:
            return None
        made, read = (np.zeros(self._table.count + 1, bool) for _ in range(2))
        read[self._read_by_heads] = True
        for name, bits in self.slices().items():
            union = bits.any(0).cpu().numpy()
            for axis, found in ((0, made), (1, read)):
                units = self._table.slots.get((name, axis))
                if units is not None:
                    found[units[union.any(1 - axis)]] = True
        return ~(made & read)[:-1]

    @torch.no_grad()
    def bury(self) -> None:
        """Switch off whatever makes or reads a dead channel, until no other dies of it.

        What nobody reads is free. What nobody makes is a constant, its BatchNorm's shift, and the
        epochs that follow do without it.
        """
        before = 0
        while (dead := self.dead_units()) is not None and dead.sum() > before:
            assert self._table is not None
            before, gone = int(dead.sum()), np.append(dead, False)
            for name in self.names:
                scores = self.scores[key_of_weight(name)].view(-1, *self.shapes[name][:2])
                for axis in (0, 1):
                    units = self._table.slots.get((name, axis))
                    if units is not None:
                        places = _places(gone[units], scores)
                        off = scores.index_select(1 + axis, places)
                        scores.index_copy_(1 + axis, places, -off.abs().clamp(min=LEAST))

    def used(self) -> tuple[float, list[float]]:
        """The union's share of the weights, and each domain's."""
        own = [
            sum(int(self._on(name)[row].sum()) * self.prices[name] for name in self.names)
            for row in range(self.domains)
        ]
        return self._in_use() / self.whole, [cost / self.whole for cost in own]

    def keep_to(self, allowed: float, full: float) -> None:
        """Constants among the `full` weights have no switches, and are paid for first."""
        self.allowed = allowed - (full - self.whole)
        self.share = min(1.0, max(self.allowed, 1.0) / self.whole)  # eq. 6 divides by it

    def least_weights(self, full: int) -> int:
        """Those of layers that are kept, a slice of every other, and what has no switches."""
        constants, others = full - self.whole, set(self.names) - self.held
        kept = sum(self.prices[name] * self._count(name) for name in self.held)
        return constants + kept + sum(self.prices[name] for name in others)

    def used_macs(self, positions: Mapping[str, int], domain: int | None) -> int:
        """Theoretical: no runtime of ours skips a slice."""
        total = 0
        for name in self.names:
            on = self._on(name)
            row = on.any(0) if domain is None else on[domain]
            total += positions[name] * self.prices[name] * int(row.sum())
        return total

    def stored(self, domain: int) -> dict[str, np.ndarray]:
        """The domain's bits; a bundle has them of the slices that it holds alone."""
        on = {n: bits[domain].cpu().numpy() for n, bits in self.slices().items()}
        return {f"slices:{name}": pack_bits(bits) for name, bits in on.items()}

    def base(self, shared: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The trunk with zeros in the slices that no domain uses."""
        found = {}
        for name in self.names:
            on = self._on(name).any(0)
            shape = (*self.shapes[name][:2], *[1] * (len(self.shapes[name]) - 2))
            # Not a product: a negative weight would leave -0, which is not what a file holds.
            found[name] = torch.where(on.view(shape), shared[name], 0.0)
        return found

    def bits(self) -> int:
        """One for each slice."""
        return sum(map(self._count, self.names))

    def unused_weights(self, table: UnitTable, alive: np.ndarray) -> int:
        """Those of the slices that no domain uses."""
        layers = tuple(layer for layer in table.layers if layer.weight in self.shapes)
        return replace(table, layers=layers).params(alive) - self._in_use()

    def groups(self, train: TrainConfig) -> list[dict[str, Any]]:
        """Adam, as the papers have it."""
        own = [scores for scores in self.scores.values() if scores.requires_grad]
        return [{"params": own, "peak": train.switch_lr, "weight_decay": 0.0, "switches": True}]

    def _in_use(self) -> int:
        """Weights that any domain uses."""
        return sum(int(self._on(name).any(0).sum()) * self.prices[name] for name in self.names)

    def _on(self, name: str) -> torch.Tensor:
        """Which slices of a weight each domain uses, bool `[D, O·I]`."""
        scores: torch.Tensor = self.scores[key_of_weight(name)]
        return scores.detach() > 0

    def _bits(self, name: str) -> torch.Tensor:
        """0 or 1 exactly, `[D, O·I]`, with the gradient of the score itself while it learns."""
        scores: torch.Tensor = self.scores[key_of_weight(name)]
        bits = (scores > 0).to(scores.dtype)
        return bits if self.fixed else bits + (scores - scores.detach())

    def _stand_still(self) -> None:
        """Scores that are fixed learn no more: several processes would wait for their gradients."""
        for scores in self.scores.values():
            scores.requires_grad_(False)

    def _count(self, name: str) -> int:
        return self.shapes[name][0] * self.shapes[name][1]


def _places(on: np.ndarray, like: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(np.flatnonzero(on)).to(like.device)

"""What a single domain may use of the union: its own budget, `[budget] own`, in MACs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from prunion.runtime.errors import BudgetError, ConfigError
from prunion.trainer.config import BudgetConfig, RunConfig, TrainConfig
from prunion.trainer.cost import (
    PricedBudget,
    Pricer,
    counted_pricer,
    least_cost,
    make_budget,
)
from prunion.trainer.learning.own.cover import even_costs, shared_out
from prunion.trainer.network import DomainNet

__all__ = [
    "check_own",
    "check_reachable",
    "keep_switches",
    "own_account",
    "own_budget",
    "own_doubt",
    "own_shortfall",
    "thinned_train",
    "thins_at_the_cut",
]

SETTLES = 3  # of so many epochs of thinning one settles; the others are the ramp


def thins_at_the_cut(config: RunConfig) -> bool:
    """Whether every domain gets its own budget at the cut, and settles with that."""
    return config.budget.own < 1 and not config.train.own_epochs


def own_budget(config: RunConfig, pricer: Pricer, whole: float) -> BudgetConfig:
    """A single domain's budget in MACs: its share of `whole`, or the narrowest network's need.

    Which union the cut leaves is not known before. Where no domain can do with so little of it, the
    run goes on with as little as can be had, and says in the end that the budget is not met.
    """
    allowed = config.budget.own * whole
    budget = BudgetConfig(
        max(allowed, 1.5), "macs", config.budget.round_to, floor=config.budget.floor
    )
    return replace(budget, limit=max(budget.limit, least_cost(budget, pricer)))


def thinned_train(train: TrainConfig) -> TrainConfig:
    """How a run goes on that thins its domains after settling, its trunk and union fixed."""
    settle = max(1, train.own_epochs // SETTLES)
    return replace(
        train,
        own_epochs=0,
        recipe="prunion",
        trunk="frozen",
        trunk_lr=TrainConfig.trunk_lr,  # and all else that says nothing here
        trunk_optimiser=TrainConfig.trunk_optimiser,
        trunk_from="start",
        lr=train.own_lr,
        warmup=0,
        ramp=train.own_epochs - settle,
        settle=settle,
        average=0.0,
        sharing="none",
        sharing_weight="learned",
        domain_budget=True,
        cut="domains",
        settle_with="own",
        drops="auto",
        switch_lr=TrainConfig.switch_lr,
        head_start="random",  # they are learned
        head_optimiser="adamw",
        head_lr="auto",
    )


def check_own(config: RunConfig, learns: bool) -> None:
    """Raise ConfigError if domains are to be thinned by what they learn, and they learn nothing."""
    own, train = config.budget.own, config.train
    if own < 1 and train.own_epochs == 1:
        raise ConfigError("[train] own_epochs is 1: give 0, or 2 or more, of which one settles")
    if own < 1 and train.own_epochs:
        thinned_train(train)  # what keys say together is checked now, not after the last epoch
    if not thins_at_the_cut(config):
        return
    why = ""
    if len(config.domains) == 1:
        why = "there is one domain, whose channels are the union: set a lower limit"
    elif not learns:
        why = "its limit cuts nothing: set a lower one"
    elif train.recipe != "prunion":
        ranks = "whose scores rank none" if train.recipe == "paper" else "which learns no switches"
        why = f'[train] recipe is "{train.recipe}", {ranks}: set "prunion"'
    if why:
        raise ConfigError(
            f"[budget] own is {own:g}, of what each domain learns to want most, and {why}, or "
            "[train] own_epochs = 3, which thins after settling"
        )


def check_reachable(config: RunConfig, net: DomainNet, budget: PricedBudget) -> None:
    """Raise BudgetError before a run if no domain could ever do with its own budget.

    The union is not known yet, only the most MACs that it can have: the narrowest network must do
    with their share. What the cut leaves may be less, and is asked again then.
    """
    own, table = config.budget.own, net.units.table
    if own == 1:
        return
    pricer = counted_pricer("macs", table)
    most = min(pricer.full, budget.allowed) if config.budget.kind == "macs" else pricer.full
    least = least_cost(config.budget, pricer)
    if least <= own * most:
        return
    where = f"set own = {min(1.0, np.ceil(least / most * 1e4) / 1e4):g} or more"
    raise BudgetError(
        f"[budget] own is {own:g}: of the {int(most):,} MACs that all domains can have together it "
        f"allows {int(own * most):,}, but the narrowest network (round_to {config.budget.round_to})"
        f" needs {int(least):,}: {where}, or a lower round_to"
    )


def keep_switches(
    net: DomainNet, kept: torch.Tensor, config: RunConfig, scores: torch.Tensor
) -> None:
    """Give the network the switches of the cut; where it is thinned there, each domain its own.

    Args:
        kept: 0/1 of every domain and unit, `[D, U]`.
        scores: what each domain learned of each unit, `[D, U]`; of the union the highest are its.
    """
    net.switches.copy_(kept)
    if not thins_at_the_cut(config):
        return
    table, union = net.units.table, (kept > 0).any(0).cpu().numpy()
    pricer = counted_pricer("macs", table)
    budget = make_budget(own_budget(config, pricer, table.macs(union)), pricer)
    rows = shared_out(budget, scores.cpu().double().numpy(), union)
    net.switches.copy_(torch.from_numpy(rows))


def own_doubt(config: RunConfig, net: DomainNet) -> str:
    """What to say before a run whose domains may not cover the union with so little; else empty.

    A doubt and no refusal: domains that divide the layers unevenly may do with less, and which
    union the cut leaves is not known yet.
    """
    if not thins_at_the_cut(config):
        return ""
    own, table, domains = config.budget.own, net.units.table, len(net.classes)
    pricer = counted_pricer("macs", table)
    even = max(even_costs(make_budget(own_budget(config, pricer, pricer.full), pricer), domains))
    if even <= own * pricer.full:
        return ""
    return (
        f"[budget] own is {own:g}, and {domains} domains that share every layer of the whole "
        f"network out evenly need {even / pricer.full:.2f} of its MACs each: own may not be met, "
        "for every channel of the union stays with a domain; set a higher own"
    )


def own_shortfall(config: RunConfig, net: DomainNet) -> str:
    """What to say of a cut that gave a domain more than its own budget, to cover the union."""
    if not thins_at_the_cut(config):
        return ""
    account = own_account(config, net)
    if account["met"]:
        return ""
    most = max(account["macs"].values())
    return (
        f"[budget] own is {config.budget.own:g}, with which the {len(net.classes)} domains were "
        f"not found to cover the union that the cut left: a domain has up to {most:.3f} of its "
        "MACs; set a higher own"
    )


def own_account(config: RunConfig, net: DomainNet, settled: int | None = None) -> dict[str, Any]:
    """What each domain alone uses of the union that is exported, and whether `own` is met.

    Args:
        settled: MACs of the union that the domains settled with, where they were thinned
            afterwards: `own` is then of that one, and the exported one may be smaller.

    Returns:
        `macs`, by domain a share of the exported union's, `asked`, `met`, and with `settled` also
        `macs_of_settled`.
    """
    table, rows, own = net.units.table, (net.switches > 0).cpu().numpy(), config.budget.own
    names = [domain.name for domain in config.domains]
    each = {name: table.macs(row) for name, row in zip(names, rows, strict=True)}
    union = (net.switches > 0).any(0).cpu().numpy()
    exported = table.macs(table.round_up(union, config.budget.round_to))
    whole = exported if settled is None else settled
    account: dict[str, Any] = {
        "asked": own,
        "met": max(each.values()) <= own * whole,
        "macs": {name: macs / exported for name, macs in each.items()},
    }
    if settled is not None:
        account["macs_of_settled"] = {name: macs / settled for name, macs in each.items()}
    return account

"""What a run needs before its first step: images, network and budget, opened and tried."""

from __future__ import annotations

import copy
import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import nn

from prunion.runtime.errors import BudgetError, ConfigError
from prunion.trainer.config import BASELINE, GRAPH, METHOD_KEYS, RunConfig, has_own_weights
from prunion.trainer.cost import (
    PricedBudget,
    check_floor,
    least_allowed,
    least_limit,
    limit_doubt,
    make_budget,
    make_pricer,
    profile_doubts,
    shown_cost,
    tabled_adapters,
)
from prunion.trainer.data import Domain, HandedSets, JointBatches, open_domains
from prunion.trainer.learning import Training, check_own, check_reachable, own_doubt
from prunion.trainer.methods import ParallelAdapters
from prunion.trainer.network import (
    AROUND,
    DomainNet,
    adapt_network,
    build_network,
    check_rebuilt,
    count_as_bundled,
    has_norms,
    rebuild_network,
    set_normalisation,
)
from prunion.trainer.processes import Processes, prepare_torch
from prunion.trainer.run.result import run_result
from prunion.trainer.run.taught import tell_taught
from prunion.trainer.score import idle_keys

__all__ = ["ExportCheck", "begin", "check_budget", "found_in", "least_of_run"]

log = logging.getLogger(__name__)


class ExportCheck(Protocol):
    """Whether a network could be exported once it is trained.

    The exporter stands above training, so whoever starts a run hands its check in.
    """

    def __call__(
        self, net: DomainNet, height: int, width: int, round_to: int, own: Sequence[str]
    ) -> int | None:
        """Leaves `net` as it is. Raises UnsupportedGraphError if it could not.

        Returns the bytes that the file holds around its tensors, which a budget of bytes counts
        with; None where they are not known.

        Args:
            net: without what the run's method adds to it.
            own: weights of the trunk that every domain is to have for itself, in a graph of its
                own, so that the graph must hold each by its name.
        """


def begin(
    config: RunConfig,
    folder: Path,
    device: str,
    processes: Processes,
    *,
    graph: Any = None,
    model: nn.Module | None = None,
    check: ExportCheck | None = None,
    importance: np.ndarray | None = None,
    datasets: HandedSets | None = None,
) -> tuple[Training, list[Domain]]:
    """A run before its first step, and its domains; nothing is written.

    Args:
        folder: the run's, for what the end of the run names.
        graph: the traced network of a run that goes on, in place of what made it.
        model: as of `train_run`.
        check: as of `train_run`.
        importance: as of `train_run`.
        datasets: as of `train_run`.

    Raises what `train_run` raises before it makes its folder.
    """
    if graph is None:  # a run of an earlier prunion goes on
        _check_trunk(config)
    orientation = config.input.orientation
    domains = open_domains(config.domains, config.seed, processes, orientation, datasets)
    prepare_torch(config, device)
    backbone, size, classes = config.backbone, config.input.size, [len(d.classes) for d in domains]
    if graph is None:
        net = build_network(
            backbone,
            size,
            classes,
            model=model,
            own_normalisation=config.own_normalisation,
            tuned=_moves_weights(config),
        )
        check_rebuilt(net, backbone, size)
    else:
        net = rebuild_network(backbone, size, classes, graph, GRAPH)
    for note in net.units.notes():
        log.info(note)
    cuts, keep = config.train.traits.prunes, config.backbone.keep
    bundled = _bundled(net, config)  # what the method adds may cost, too
    budget = make_budget(config.budget, make_pricer(config.budget, bundled), keep, cuts=cuts)
    if budget.pricer.profile is not None:
        for doubt in profile_doubts(budget.pricer.profile, config.input.size):
            log.warning(doubt)
    if check is not None:
        height, width = config.input.size
        own, round_to = _own_weights(bundled), config.budget.round_to
        found = list[int | None]()
        processes.on_first(lambda: found.append(check(net, height, width, round_to, own)))
        around = json.loads(processes.share_text(json.dumps(found))[0])[0]
        if config.budget.kind == "bytes" and around is not None:
            net.graph[AROUND] = bundled.graph[AROUND] = around
            pricer = make_pricer(config.budget, bundled)
            budget = make_budget(config.budget, pricer, keep, cuts=cuts)
    adapt_network(net, config.train)
    set_normalisation(net, config)
    check_budget(config, net, budget, begun=graph is not None)
    cuts_nothing = limit_doubt(config.budget, budget) if cuts else ""
    for unsure in filter(None, (own_doubt(config, net), cuts_nothing)):
        log.warning(unsure)
    if (idle := idle_keys(config)) and folder.name != BASELINE:  # which has its run's keys
        told = "[train] %s: says nothing, as [budget] limit 1 leaves every channel"
        log.warning(told, ", ".join(idle))
    net = net.to(device)
    batches = JointBatches(
        domains, config, processes=processes, pin=device == "cuda", norms=has_norms(net)
    )
    training = Training(config, net, batches, budget, processes, importance=importance)
    tell_taught(training, domains)
    _rehearse_end(training, domains, folder)
    return training, domains


def check_budget(
    config: RunConfig, net: DomainNet, budget: PricedBudget, *, begun: bool = False
) -> None:
    """Raise a PrunionError if this network cannot meet what `[budget]` asks for, or no run could.

    Args:
        begun: whether a run goes on, of an earlier prunion perhaps, which tells at its end.
    """
    if not begun:
        _check_floor(config, budget)
        _check_slices(config, net, budget)
        _check_learned(config, budget)
        _check_idle(config, net)
    check_reachable(config, net, budget)
    learns = config.train.traits.prunes and (budget.share < 1 or config.train.recipe == "paper")
    check_own(config, learns)


def found_in(domains: Sequence[Domain]) -> dict[str, dict[str, Any]]:
    """What opening each domain met, by its name."""
    return {domain.name: dict(domain.found) for domain in domains}


def _moves_weights(config: RunConfig) -> bool:
    """Whether weights that the network came with learn, the trunk's or a domain's copies."""
    return config.train.trunk == "tuned" or config.train.method in ("packnet", "taps")


def _check_trunk(config: RunConfig) -> None:
    """Raise ConfigError if a tuned trunk would never learn, as no step of the run settles."""
    train = config.train
    settles = train.settle or (train.ramp and train.recipe == "once")  # once cut, it settles
    if train.trunk_from == "settle" and not settles:
        raise ConfigError(
            '[train] trunk_from is "settle" and settle is 0, so the trunk would never learn: give '
            "settle epochs, or leave trunk_from out"
        )


def _check_learned(config: RunConfig, budget: PricedBudget) -> None:
    """Raise ConfigError if a run would cut or settle by what no step has taught it."""
    train = config.train
    if train.warmup + train.ramp:
        return
    what = ""
    if train.method in ("svd", "taps"):
        what = f'method "{train.method}" learns what it settles with'
    elif train.method == "packnet" and len(config.domains) > 1:
        what = 'method "packnet" learns which weights a domain keeps'
    elif budget.share < 1 and train.granularity == "slice":
        what = "slices learn, and the budget leaves some out"
    elif budget.share < 1 and train.recipe == "paper":
        what = "the paper's switches learn, and the budget leaves some out"
    if what:
        raise ConfigError(
            f"[train] warmup and ramp are 0, in which {what}: give one of them an epoch"
        )


def _check_idle(config: RunConfig, net: DomainNet) -> None:
    """Raise ConfigError if a key of `[train]` says nothing of so many domains, or this network."""
    train, adapter, told = config.train, net.adapter, ""
    beside = isinstance(adapter, ParallelAdapters) and adapter.dropped.intersection(adapter.names)
    if isinstance(adapter, ParallelAdapters) and train.adapter_dropout and not beside:
        told = f"adapter_dropout is {train.adapter_dropout:g}, of the second convolutions of "
        told += "residual blocks, and none of this network has an adapter"
    if train.norms == "own" and not has_norms(net):
        told = 'norms is "own", and this network has no BatchNorm'
    alone = len(config.domains) == 1
    if alone and train.packnet_prune != METHOD_KEYS["packnet_prune"].default:
        told = f"packnet_prune is {train.packnet_prune:g}, what a domain gives back to later ones, "
        told += "and there is one domain"
    if told:
        raise ConfigError(f"[train] {told}: remove it")


def _bundled(net: DomainNet, config: RunConfig) -> DomainNet:
    """A copy as a bundle will hold it, with what is left there of what the run's method adds.

    The export is tried without.

    Raises ConfigError where nothing is left to adapt.
    """
    if not has_own_weights(vars(config.train)):
        return net
    trial = copy.deepcopy(net)
    with torch.random.fork_rng(devices=[]):  # whoever asks draws the same afterwards
        adapt_network(trial, config.train)
    count_as_bundled(trial)
    return trial


def _own_weights(net: DomainNet) -> list[str]:
    """Of the trunk, those that domains will have apart; none where all share one graph."""
    return [] if net.adapter is None or tabled_adapters(net) else list(net.adapter.names)


def _check_floor(config: RunConfig, budget: PricedBudget) -> None:
    traits, floor = config.train.traits, config.budget.floor
    if floor and not traits.prunes:
        raise ConfigError(
            f"[budget] floor is {floor:g}, a share of channels, and [train] method is "
            f'"{config.train.method}" ({traits.what}), which removes none: remove it'
        )
    check_floor(config.budget, budget)


def least_of_run(config: RunConfig, net: DomainNet, budget: PricedBudget) -> float:
    """The least that the run must allow, in the budget's unit."""
    if config.train.granularity == "slice" and net.adapter is not None:
        return net.adapter.least_weights(int(budget.full))
    return least_allowed(config.budget, budget.pricer)


def _check_slices(config: RunConfig, net: DomainNet, budget: PricedBudget) -> None:
    """Raise BudgetError if the limit does not hold the narrowest network of slices."""
    least = least_of_run(config, net, budget)
    if config.train.granularity != "slice" or least <= budget.allowed:
        return
    keep, limit = config.backbone.keep, config.budget.limit
    whole = f"all of keep = {', '.join(keep)}, of every other layer" if keep else "of every layer"
    raise BudgetError(
        f"[budget] limit {limit} allows {shown_cost('params', budget.allowed)}, but the narrowest "
        f"network ({whole} a slice) needs {shown_cost('params', least)}: give at least "
        f"{least_limit(config.budget, least, budget.pricer.backbone)}"
    )


def _rehearse_end(training: Training, domains: Sequence[Domain], folder: Path) -> None:
    """What only the end of a run computes, before its first step: a key that breaks it shows now.

    The figures mean nothing yet.
    """
    guess = {domain.name: 0.5 for domain in domains}
    before = guess if training.schedule.common_warmup else {}
    result = run_result(training, guess, before, folder, 0.0, found_in(domains))
    json.dumps(result.to_json()).encode()

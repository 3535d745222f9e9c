"""A new domain on a finished trunk: BatchNorm, switches within the union, and a head."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunion.runtime.errors import ConfigError
from prunion.trainer.config import (
    ADDED_TRAIN,
    LOG,
    STATE,
    TENSORBOARD,
    BudgetConfig,
    DomainConfig,
    RunConfig,
    TrainConfig,
)
from prunion.trainer.cost import budget_account, make_budget, make_pricer
from prunion.trainer.data import Domain, JointBatches, open_domains
from prunion.trainer.learning import StopRequest, Training, stop_signals
from prunion.trainer.network import (
    Checkpoint,
    DomainNet,
    accuracy_of,
    adapt_network,
    answer_domains,
    has_norms,
    rebuild_network,
    set_normalisation,
)
from prunion.trainer.processes import device_named, prepare_torch, switch_device
from prunion.trainer.pruning import later_recipe
from prunion.trainer.run.epochs import SAVED, open_log, run_epochs
from prunion.trainer.run.folder import Claim, check_folder, make_folder, restore
from prunion.trainer.run.record import check_answers, watch_accuracy, watched_part

__all__ = ["AddedDomain", "add_domain"]

LEFT_BY_FINISHED = {LOG, TENSORBOARD}  # what adding a domain leaves when it is done
# Of a train config, what says something about a domain that comes later.
SAID = (*ADDED_TRAIN, "accumulate", "small_set_decay")
# What a domain that joins adapters has of the run's `[train]`.
ADAPTER_KEYS = (
    "adapters",
    "sites",
    "adapter_dropout",
    "adapter_decay",
    "adapter_lr",
    "adapter_rank",
)


@dataclass(frozen=True)
class AddedDomain:
    """A network of the new domain alone, on the finished trunk.

    Attributes:
        net: the trunk's weights unchanged; one row of switches, all within the old union.
        accuracy: share of right answers on the test images.
    """

    net: DomainNet
    domain: Domain
    accuracy: float


def add_domain(
    checkpoint: Checkpoint,
    new: DomainConfig,
    train: TrainConfig,
    seed: int = 0,
    folder: Path | None = None,
    *,
    force: bool = False,
    resume: bool = False,
) -> AddedDomain:
    """Train a new domain without touching the trunk.

    The trunk stays frozen and only channels of the union can be used, so the result is a pack
    that the existing bundle and engines accept. Switches start all on within the union; a switch
    whose channel harms the domain may go off (there is no budget to meet: the union is paid for).

    Args:
        train: `warmup` + `ramp` + `settle` epochs; switches learn during the ramp. What it says
            of the trunk, the budget, sharing, order and a teacher is without meaning here.
        folder: for the log and the state to resume from, as of `train_run`; it is up to the
            caller to remove the state once the result is safe. Without one nothing is written,
            and signals end the process as they always do.

    Raises:
        ConfigError: the checkpoint has a domain of that name, in whichever case.
        DataError: the new domain's images cannot be read.
        PrunionError: `folder` holds a stopped run and neither `force` nor `resume` is given, or
            the loss stops being finite, or in the end every answer.
        StoppedError: SIGTERM or SIGINT came; `resume` goes on from that very step.
    """
    # Its pack is a file beside the others', also where file names ignore case.
    like = {d["name"].lower(): d["name"] for d in checkpoint.meta["domains"]}
    if (other := like.get(new.name.lower())) is not None:
        raise ConfigError(
            f"[domains.{new.name}] is named like the checkpoint's domain {other}: rename it (upper "
            "and lower case do not tell domains apart)"
        )
    before = checkpoint.config.train
    if before.traits.own_weights and not _has_adapters(checkpoint.net):
        raise ConfigError(
            f'the checkpoint\'s method is "{before.method}", {before.traits.what}: its weights are '
            "one domain's own, so none can join it; train the new domain in a run of its own"
        )
    # A finished run left a log and nothing that could be lost.
    force = force or (folder is not None and not resume and _holds_only_logs(folder))
    with Claim(folder or Path()) as claim:
        if folder is not None:
            check_folder(folder, force=force, resume=resume)
            claim.take()
        orientation = checkpoint.config.input.orientation
        (domain,) = open_domains([new], seed, orientation=orientation)
        training = _prepare(checkpoint, domain, _config(checkpoint, new, train, seed))
        facts: dict[str, Any] = {}
        if folder is not None:
            make_folder(folder, force=force, resume=resume, claim=claim)
            if resume and (folder / STATE).is_file():
                facts = restore(training, folder)
        few = watched_part(training, [domain])
        signals = nullcontext(StopRequest()) if folder is None else stop_signals()
        with signals as stop, open_log(folder, training) as log:

            def measure() -> dict[str, dict[str, float]]:
                found = watch_accuracy(training, few)
                log(training.step, **found, phase=training.phase)
                return found

            run_epochs(training, folder, log, stop, facts, measure)
            stop.at_once(SAVED)
            shape, workers = training.config.input, train.workers
            answers = answer_domains(training.net, [domain], shape, workers=workers)
            check_answers(training, answers, [domain])
            accuracy = accuracy_of(answers, [domain])
            log(training.step, accuracy=accuracy, budget=_account(training))
    return AddedDomain(training.net.cpu().eval(), domain, accuracy[new.name])


def _has_adapters(net: DomainNet) -> bool:
    """Whether what each domain has of its own stands beside a trunk that others may join."""
    return net.adapter is not None and bool(net.adapter.matrices())


def _holds_only_logs(folder: Path) -> bool:
    return folder.is_dir() and {path.name for path in folder.iterdir()} <= LEFT_BY_FINISHED


def _config(checkpoint: Checkpoint, new: DomainConfig, train: TrainConfig, seed: int) -> RunConfig:
    """The run of the new domain alone; its budget is the whole network."""
    old, own = checkpoint.config, dict[str, Any]()
    before = old.train
    # It gets the same, of its own; of other methods' adapters there are no later ones.
    if _has_adapters(checkpoint.net) and (before.method == "parallel" or before.adapter_rank):
        own = {key: getattr(before, key) for key in ADAPTER_KEYS}
        if before.method == "parallel":  # of the others it takes the adapters alone
            own |= {"method": before.method, "norms": before.norms}
    train = TrainConfig(trunk="frozen", **{key: getattr(train, key) for key in SAID}, **own)
    return RunConfig(
        backbone=old.backbone,
        budget=BudgetConfig(1.0),
        domains=(new,),
        input=old.input,
        train=train,
        seed=seed,
        threads=old.threads,
        device="auto",
    )


def _prepare(checkpoint: Checkpoint, domain: Domain, config: RunConfig) -> Training:
    device = device_named(config.device, config.train)
    prepare_torch(config, device)
    net = _start(checkpoint, config, len(domain.classes)).to(device)
    budget = make_budget(config.budget, make_pricer(config.budget, net))
    batches = JointBatches([domain], config, pin=device == "cuda", norms=has_norms(net))
    home = switch_device(net.switches.device)
    cost = budget.pricer.cost_model().to(home)
    kept = (net.switches[0] > 0).to(home)
    recipe = later_recipe(config.train, cost, kept, batches.steps_per_epoch)
    origin = checkpoint.meta["model_sha256"]
    return Training(config, net, batches, budget, recipe=recipe, origin=origin)


def _start(checkpoint: Checkpoint, config: RunConfig, classes: int) -> DomainNet:
    """The finished trunk with one domain, whose BatchNorm starts at the old domains' mean."""
    size, graph = config.input.size, checkpoint.net.graph
    net = rebuild_network(config.backbone, size, [classes], graph, "the checkpoint's graph")
    if _has_adapters(checkpoint.net):
        adapt_network(net, config.train)
    old = checkpoint.net.state_dict()
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.startswith(("heads.", "adapter.")):
                continue
            if name == "switches":
                value.copy_((old[name] > 0).any(0, keepdim=True))
            elif name.startswith("trunk.norms."):
                value.copy_(old[name].mean(0, keepdim=True))
            else:
                value.copy_(old[name])
    set_normalisation(net, config)
    return net


def _account(training: Training) -> dict[str, Any]:
    """What the channels that the domain uses cost, of the whole backbone's."""
    cost = training.budget.pricer.of(training.alive())
    return budget_account(training.config.budget, training.budget, cost).to_json()

"""A new domain on a finished trunk: BatchNorm, switches within the union, and a head."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from tqdm import tqdm

from prunion.runtime.errors import ConfigError
from prunion.trainer.config.run import DomainConfig, RunConfig, TrainConfig
from prunion.trainer.data.batches import Batch, JointBatches
from prunion.trainer.data.domains import Domain, open_domain
from prunion.trainer.network.checkpoint import Checkpoint
from prunion.trainer.network.evaluate import evaluate
from prunion.trainer.network.masked import DomainNet, build_network
from prunion.trainer.pruning.learners import SwitchLearner
from prunion.trainer.pruning.schedule import Schedule
from prunion.trainer.run.device import device_named, prepare_device
from prunion.trainer.run.optimiser import WeightAverage, make_optimiser, set_rates
from prunion.trainer.run.steps import check_losses, forward_backward

__all__ = ["AddedDomain", "add_domain"]


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
    checkpoint: Checkpoint, new: DomainConfig, train: TrainConfig, seed: int = 0
) -> AddedDomain:
    """Train a new domain without touching the trunk.

    The trunk stays frozen and only channels of the union can be used, so the result is a pack
    that the existing bundle and engines accept. Switches start all on within the union; a switch
    whose channel harms the domain may go off (there is no budget to meet: the union is paid for).

    Args:
        train: `warmup` + `ramp` + `settle` epochs; switches learn during the ramp. What it says
            of the trunk, the budget, sharing and a teacher is without meaning here.

    Raises:
        ConfigError: the checkpoint has a domain of that name.
        DataError: the new domain's images cannot be read.
    """
    if any(d["name"] == new.name for d in checkpoint.meta["domains"]):
        raise ConfigError(
            f"[domains.{new.name}]: the checkpoint already has a domain of that name: rename it"
        )
    domain = open_domain(new, seed)
    old = checkpoint.config
    config = RunConfig(
        backbone=old.backbone,
        budget=old.budget,
        domains=(new,),
        input=old.input,
        train=replace(train, trunk="frozen"),
        seed=seed,
        threads=old.threads,
        device="auto",
    )
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.manual_seed(seed)
    device = device_named(config.device)
    prepare_device(device)
    net = _start(checkpoint, config, len(domain.classes)).to(device)
    _train(net, config, JointBatches([domain], config, pin=device == "cuda"))
    accuracy = evaluate(net, [domain], config.input, workers=train.workers)[new.name]
    return AddedDomain(net.cpu().eval(), domain, accuracy)


def _start(checkpoint: Checkpoint, config: RunConfig, classes: int) -> DomainNet:
    """The finished trunk with one domain, whose BatchNorm starts at the old domains' mean."""
    net = build_network(config.backbone, config.input.size, [classes], weights=False)
    old = checkpoint.net.state_dict()
    with torch.no_grad():
        for name, value in net.state_dict().items():
            if name.startswith("heads."):
                continue
            if name == "switches":
                value.copy_((old[name] > 0).any(0, keepdim=True))
            elif name.startswith("trunk.norms."):
                value.copy_(old[name].mean(0, keepdim=True))
            else:
                value.copy_(old[name])
    return net


def _train(net: DomainNet, config: RunConfig, batches: JointBatches) -> None:
    train, per_epoch = config.train, batches.steps_per_epoch
    warmup, ramp, settle = (n * per_epoch for n in (train.warmup, train.ramp, train.settle))
    schedule = Schedule(warmup, ramp, settle, beta=1.0)
    optimiser = make_optimiser(train, net)
    average = WeightAverage(train.average * per_epoch)
    units, device = net.switches.shape[1], net.switches.device
    union = net.switches.clone()
    learner = SwitchLearner(1, units, 1.0 / max(1, schedule.ramp), device, union[0] > 0)
    bar = tqdm(total=schedule.total, desc="add-domain", disable=not sys.stderr.isatty())
    net.to(memory_format=torch.channels_last).train()
    with bar:
        for step, batch in enumerate(_steps(batches, train.epochs)):
            learning = schedule.phase(step) == "ramp"
            switches = (learner.on() * union).detach()
            if learning:
                switches.requires_grad_()
            set_rates(optimiser, schedule.rate(step))
            smoothing, precision = train.label_smoothing, train.precision
            result = forward_backward(net, batch, switches, smoothing, precision)
            names = [config.domains[0].name]
            check_losses(result.loss, names, f"step {step}", "nothing was saved")
            if learning:
                assert switches.grad is not None
                learner.update(switches.grad * union, torch.zeros_like(union))
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
            if train.average and schedule.phase(step) == "settle":
                average.update(net)
            bar.update()
    average.move_into(net)
    net.switches.copy_((learner.scores > 0) * union)


def _steps(batches: JointBatches, epochs: int) -> Iterator[list[Batch]]:
    for epoch in range(epochs):
        yield from batches.epoch(epoch)

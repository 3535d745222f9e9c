"""What learning switches costs a training step.

    python -m prunion.benchmarks.cost.train_step [--backbone lite0] [--size 64] [--device cuda]

Times eight ramp steps (switches, sharing loss, an update of the switches in `--every` of them)
against eight steps of plain per-domain-BatchNorm training of the same network on the same random
images, interleaved in one run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import click
import torch

from prunion.runtime.base import Timing, time_interleaved
from prunion.runtime.cli import OneLineCommand, seconds_option
from prunion.trainer.backbone import load_backbone
from prunion.trainer.config import (
    BackboneConfig,
    BudgetConfig,
    DomainConfig,
    InputConfig,
    RunConfig,
    TrainConfig,
)
from prunion.trainer.cost import make_budget, make_pricer
from prunion.trainer.data import Batch
from prunion.trainer.learning import Training
from prunion.trainer.network import DomainNet
from prunion.trainer.processes import prepare_device

__all__ = ["STEPS", "STEP_NETWORKS", "main", "random_batches", "random_training", "ratio"]

STEPS = 8
CLASSES = 10
STEP_NETWORKS = {
    "resnet18": BackboneConfig("resnet18", weights="none", cut="layer3"),
    "resnet50": BackboneConfig("resnet50", weights="none"),
    "wrn28_4": BackboneConfig("wrn28_4", "prunion", "none"),
    "lite0": BackboneConfig("tf_efficientnet_lite0", "timm", "none"),
}
VARIANTS: dict[str, dict[str, Any]] = {"compile": {"compile": True}, "bf16": {"precision": "bf16"}}


@dataclass(frozen=True)
class RandomBatches:
    """The same few joint steps every epoch; stands in for a data loader."""

    steps: tuple[tuple[Batch, ...], ...]
    classes: tuple[tuple[str, ...], ...]
    images: tuple[int, ...] = ()  # how many each domain has: nobody knows
    turns_per_epoch: tuple[int, ...] = ()  # they hold every domain

    @property
    def steps_per_epoch(self) -> int:
        """How many lists of batches `epoch` yields."""
        return len(self.steps)

    @property
    def least_per_epoch(self) -> int:
        """How many of them have a domain's images: all."""
        return len(self.steps)

    def epoch(self, epoch: int, start: int = 0, *, joint: bool = True) -> Iterator[list[Batch]]:
        """The steps from `start` on."""
        return (list(step) for step in self.steps[start:])

    def parts(self, batches: Sequence[Batch]) -> list[Sequence[Batch]]:
        """A step as one part."""
        return [batches]


def ratio(
    backbone: str,
    size: int,
    domains: int,
    batch: int,
    trunk: str,
    device: str,
    seconds: float,
    every: int,
    also: tuple[str, ...] = (),
) -> tuple[float, dict[str, Timing]]:
    """Median milliseconds of `STEPS` steps: learning switches over plain training.

    `also` names what steps with switches are timed with beside it, of `VARIANTS`.
    """
    cases, images = {}, random_batches(size, domains, batch, device)
    for name, limit in (("plain", 1.0), ("switches", 0.5), *((name, 0.5) for name in also)):
        training = random_training(
            STEP_NETWORKS[backbone],
            size,
            domains,
            batch,
            device,
            limit,
            batches=images,
            trunk=trunk,
            switch_every=every,
            **VARIANTS.get(name, {}),
        )

        def epoch(training: Training = training) -> None:
            training.run_epoch(_ignore)
            if device == "cuda":
                torch.cuda.synchronize()

        cases[name] = epoch
    timings = time_interleaved(cases, seconds=seconds, warmup=2, block_ms=1.0)
    return timings["switches"].p50_ms / timings["plain"].p50_ms, timings


def _ignore(figures: dict[str, float]) -> None:
    pass


def random_training(
    backbone: BackboneConfig,
    size: int,
    domains: int,
    batch: int,
    device: str,
    limit: float,
    *,
    batches: RandomBatches | None = None,
    **train: Any,
) -> Training:
    """A run in its ramp on random images; with `limit` 1 its switches do not learn.

    Args:
        batch: images per domain and step.
        batches: of `random_batches` with the same arguments, where several runs share them.
        train: keys of `[train]`.
    """
    torch.manual_seed(0)
    names = tuple(f"domain{d}" for d in range(domains))
    config = RunConfig(
        backbone=backbone,
        budget=BudgetConfig(limit),
        domains=tuple(DomainConfig(name=n, train=("-",), test=("-",)) for n in names),
        input=InputConfig((size, size)),
        train=TrainConfig(warmup=0, ramp=100_000, settle=0, **train),
    )
    net = DomainNet(load_backbone(config.backbone, size, size), [CLASSES] * domains).to(device)
    budget = make_budget(config.budget, make_pricer(config.budget, net))
    images = batches or random_batches(size, domains, batch, device)
    return Training(config, net, images, budget)  # type: ignore[arg-type]


def random_batches(size: int, domains: int, batch: int, device: str) -> RandomBatches:
    """Steps of the same random images, made where the network is: nothing is copied in a step.

    Args:
        batch: images per domain and step.
    """
    dice = torch.Generator(device).manual_seed(0)
    shape = (batch, 3, size, size)
    images = [torch.randn(shape, generator=dice, device=device) for _ in range(domains)]
    steps = tuple(
        tuple(
            Batch(d, x, torch.randint(CLASSES, (batch,), generator=dice, device=device))
            for d, x in enumerate(images)
        )
        for _ in range(STEPS)
    )
    return RandomBatches(steps, (tuple(map(str, range(CLASSES))),) * domains)


@click.command(cls=OneLineCommand)
@click.option("--backbone", type=click.Choice(list(STEP_NETWORKS)), default="resnet18")
@click.option("--size", default=64, show_default=True)
@click.option("--domains", default=5, show_default=True)
@click.option("--batch", default=24, show_default=True, help="Images per domain and step.")
@click.option("--trunk", type=click.Choice(["frozen", "tuned"]), default="tuned")
@click.option("--device", type=click.Choice(["cpu", "cuda"]), default="cpu")
@click.option("--threads", default=0, show_default=True)
@seconds_option(30.0)
@click.option("--also", multiple=True, type=click.Choice(list(VARIANTS)), help="Time it so too.")
@click.option(
    "--every",
    type=click.Choice(["1", "2", "4", "8"]),
    default="8",
    show_default=True,
    help="Steps for one update of the switches: 8 in a long ramp, fewer in a short one.",
)
def main(threads: int, **options: Any) -> None:
    """Print the ratio and both medians as JSON."""
    if threads:
        torch.set_num_threads(threads)
    prepare_device(options["device"])
    options["every"] = int(options["every"])
    value, timings = ratio(**options)
    figures = {name: round(t.p50_ms / STEPS, 2) for name, t in timings.items()}
    runs = {name: t.runs for name, t in timings.items()}
    print(json.dumps({**options, "ratio": round(value, 3), "step_ms": figures, "runs": runs}))


if __name__ == "__main__":
    main()

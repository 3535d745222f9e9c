"""`prunion pretrain`: a trunk trained on one domain, where nobody publishes weights of it.

The same loop as every run, with nothing pruned and one domain. What it writes are the backbone's
tensors under the backbone's names, so that `[backbone] weights` takes them, and the domain's head.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from prunion.exporter.training import train
from prunion.runtime.base import Seen, check_output, reason_of, replace_file
from prunion.runtime.bundle import sorted_metadata
from prunion.runtime.errors import ConfigError, DataError
from prunion.trainer.backbone import NORMS, PAPER_NETS, PIXEL_NORM, given_name
from prunion.trainer.config import (
    STATE,
    BackboneConfig,
    BudgetConfig,
    DomainConfig,
    InputConfig,
    RunConfig,
    TrainConfig,
    domain_parts,
)
from prunion.trainer.data import parts_among
from prunion.trainer.network import DomainNet, build_network, load_checkpoint
from prunion.trainer.processes import joined_processes

__all__ = [
    "Source",
    "backbone_named",
    "domain_at",
    "on_first",
    "pretrain_trunk",
    "pretraining",
    "read_source",
    "source_network",
]

KIND = "prunion pretrain"
HEAD = ("domain_head.weight", "domain_head.bias")
HOLDOUT = 0.1  # of the images, where there are none to test on


@dataclass(frozen=True)
class Source:
    """What a file of `prunion pretrain` says beside the trunk: the head of the domain it learned.

    Attributes:
        accuracy: share of right answers on the domain's test images.
        head: weight `[classes, F]` and bias `[classes]`.
        images: digest of the images' listing; "" where nobody told it.
        views: of each test image, that `accuracy` is of; 0 where an earlier version did not say.
    """

    domain: str
    classes: tuple[str, ...]
    accuracy: float
    head: tuple[torch.Tensor, torch.Tensor]
    images: str = ""
    views: int = 0


def pretrain_trunk(
    config: RunConfig,
    output: Path,
    *,
    force: bool = False,
    resume: bool = False,
    images: str = "",
) -> Source:
    """Train the backbone of a run on its one domain, and write its weights to `output`.

    The run lies beside them, in `OUTPUT.run`: `resume` goes on with it.

    Args:
        images: digest of the images' listing, to be told in the file.

    Raises what `prunion.train` raises; PrunionError where `output` exists and neither `force` is
    given nor `resume` has a run to go on with, or where another program wrote it.
    """
    folder = output.with_name(output.name + ".run")
    # What is there beside a state is that run's own, of before it was stopped.
    may = force or (resume and (folder / STATE).is_file())
    was = check_output(output, force=may, wrote=_foreign)
    train(config, folder, force=force, resume=resume and folder.exists())
    on_first(lambda: _write(folder, output, images, was))
    return read_source(output)


def pretraining(
    backbone: BackboneConfig, domain: DomainConfig, shape: InputConfig, **train: Any
) -> RunConfig:
    """The run that `pretrain_trunk` wants: every channel, everything learns.

    Args:
        train: keys of `[train]`, and `seed`, `threads` and `device`.
    """
    top = {key: train.pop(key) for key in ("seed", "threads", "device") if key in train}
    phases = {"warmup": 0, "settle": 0}
    # What random weights make of an image is nothing to fit a head to.
    start = {"method": "finetune", "head_start": "random", "trunk_optimiser": "adamw"}
    learning = TrainConfig(**{**start, **phases, **train})
    return RunConfig(backbone, BudgetConfig(1.0), (domain,), shape, learning, **top)


def backbone_named(name: str, weights: str = "none") -> BackboneConfig:
    """A network by its name, of `SOURCE:NAME` or of whoever has one: the papers', torchvision's."""
    source, colon, own = name.partition(":")
    if colon:
        return BackboneConfig(own, source, weights)  # type: ignore[arg-type]
    return BackboneConfig(name, "prunion" if name in PAPER_NETS else "torchvision", weights)


def domain_at(data: Path, name: str = "") -> DomainConfig:
    """One domain's images: a folder of class folders, maybe below `train` and `test`, or a file.

    Raises DataError if there is nothing, or parts under other names, which would be classes.
    """
    if not data.exists():
        raise DataError(f"{data} does not exist: give a folder of class folders, or a Parquet file")
    # What a domain's name may not hold becomes `_`.
    name = (
        name or re.sub(r"[^A-Za-z0-9_.-]+", "_", data.resolve().stem).lstrip("_.-")[:64] or "data"
    )
    parts = domain_parts(data)
    if parts == {"train": data}:
        _check_parts(data)
    train, test, validation = (
        (str(parts[part]),) if part in parts else () for part in ("train", "test", "validation")
    )
    holdout = 0.0 if test else HOLDOUT
    return DomainConfig(name, train=train, test=test, validation=validation, holdout=holdout)


def _check_parts(data: Path) -> None:
    """Refuse a folder whose class folders look like parts of a data set."""
    folders = sorted(x.name for x in data.iterdir() if x.is_dir()) if data.is_dir() else []
    if found := parts_among(folders):
        raise DataError(
            f"{data} holds the folders {' and '.join(found)}, which look like parts of a data set "
            "and would be classes: name them train and test, or give one of them"
        )


def read_source(path: Path) -> Source:
    """The head beside a trunk's weights. Raises ConfigError for a file of other making."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "pt") as file:
            facts = file.metadata() or {}
            if facts.get("kind") != KIND:
                raise ConfigError(
                    f"{path} is no file of `prunion pretrain`: it says nothing of the domain that "
                    "its weights come from"
                )
            head = file.get_tensor(HEAD[0]), file.get_tensor(HEAD[1])
        classes = tuple(str(x) for x in json.loads(facts["classes"]))
        told = facts.get("images", ""), int(facts.get("views", 0))
        source = Source(facts["domain"], classes, float(facts["accuracy"]), head, *told)
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as exc:
        raise ConfigError(f"{path} cannot be read ({reason_of(exc)}): pretrain again") from None
    if head[0].dim() != 2 or not len(classes) == len(head[0]) == len(head[1]):
        raise ConfigError(f"{path}: its head is not of its {len(classes)} classes: pretrain again")
    return source


def source_network(backbone: BackboneConfig, size: tuple[int, int], source: Source) -> DomainNet:
    """The pretrained network, with its head, as a network of one domain."""
    net = build_network(backbone, size, [len(source.classes)])
    head = net.heads[0]
    assert isinstance(head, torch.nn.Linear)
    if source.head[0].shape != head.weight.shape:
        raise ConfigError(
            f"{backbone.weights}: its head has {source.head[0].shape[1]} features, {backbone.name} "
            f"{head.weight.shape[1]}: the file is another network's"
        )
    with torch.no_grad():
        head.weight.copy_(source.head[0])
        head.bias.copy_(source.head[1])
    return net.eval()


def on_first(action: Any) -> None:
    """Run `action` in the first of torchrun's processes; the others wait for it, or end with it."""
    with joined_processes(1, TrainConfig(), "cpu") as processes:
        processes.on_first(action)


def _write(run: Path, output: Path, images: str, was: Seen) -> None:
    from safetensors.torch import save

    loaded = load_checkpoint(run)
    domain = loaded.meta["domains"][0]
    facts = {
        "kind": KIND,
        "network": loaded.config.backbone.name,
        "domain": domain["name"],
        "accuracy": repr(float(domain["accuracy"])),
        "classes": json.dumps(domain["classes"]),
        "images": images,
        "views": str(loaded.config.input.test_crops),
    }
    with replace_file(output, was) as temporary:
        # The same run writes the same bytes, as rows are told from others by the file's digest.
        temporary.write_bytes(sorted_metadata(save(_tensors(loaded.net), facts)))


def _tensors(net: DomainNet) -> dict[str, torch.Tensor]:
    """A network's of one domain, by the names that its backbone has for them."""
    held: dict[str, torch.Tensor] = {
        n: p for n, p in net.trunk.named_parameters() if not n.startswith(NORMS)
    }
    held |= {n: b for n, b in net.trunk.named_buffers() if not n.startswith((NORMS, "gates."))}
    for name, norm in net.norms.items():
        if name == PIXEL_NORM:  # of the images, whose normalisation the next run says itself
            continue
        for leaf in ("weight", "bias", "running_mean", "running_var"):
            held[f"{name}.{leaf}"] = getattr(norm, leaf)[0]
    head = net.heads[0]
    assert isinstance(head, torch.nn.Linear)
    held |= dict(zip(HEAD, (head.weight, head.bias), strict=True))
    # The next run gives them to the backbone before any name is changed.
    return {given_name(name): value.detach().cpu().contiguous() for name, value in held.items()}


def _foreign(path: Path) -> str:
    """Why a file is none that this wrote; "" if it is one."""
    if not path.is_file():
        return "is no file"
    try:
        read_source(path)
    except ConfigError:
        return "was not written by `prunion pretrain`"
    return ""

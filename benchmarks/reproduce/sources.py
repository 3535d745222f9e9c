"""The trunks that rows start from: their weights, and what they answer for the source domain."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from prunion.benchmarks.reproduce.archives import (
    BenchmarkImages,
    Picture,
    domain_config,
    listing_of,
)
from prunion.benchmarks.reproduce.catalogue import backbone_of
from prunion.benchmarks.reproduce.pretrain import (
    Source,
    pretrain_trunk,
    pretraining,
    read_source,
    source_network,
)
from prunion.benchmarks.reproduce.settings import Reproduction, input_of
from prunion.runtime.base import parse_json, sha256_file, shown, write_json
from prunion.runtime.errors import ConfigError, DataError, InputError
from prunion.runtime.images import ImageSet, decode_image, digest_of
from prunion.trainer.backbone import PAPER_NETS
from prunion.trainer.config import InputConfig
from prunion.trainer.data import Domain
from prunion.trainer.network import Checkpoint, DomainNet, answer_domains
from prunion.trainer.processes import device_named

__all__ = [
    "NamedTrunk",
    "TrunkSource",
    "answering_source",
    "answers_of_run",
    "answers_of_source",
    "images_to_pretrain",
    "named_trunk",
    "trunk_source",
]

log = logging.getLogger(__name__)
PRETRAINING = 90  # epochs
UNLEARNED = ("test", "test_stripped")  # parts of which pretraining sees nothing


@dataclass(frozen=True)
class NamedTrunk:
    """Which weights a network is to have.

    Attributes:
        weights: a file, or "default" for the library's.
        epochs: of pretraining, which makes the file where it is not there; 0 if it was given.
    """

    weights: str
    epochs: int = 0


@dataclass(frozen=True)
class TrunkSource:
    """Where a network's weights come from.

    Attributes:
        weights: a file, or "default" for the library's.
        accuracy: share of right answers on the source domain; None where they do not tell.
    """

    weights: str
    accuracy: float | None = None


def named_trunk(asked: Reproduction, network: str) -> NamedTrunk:
    """Which weights a network is to have, whether or not they are there yet."""
    if network in asked.weights:
        return NamedTrunk(asked.weights[network])
    if network not in PAPER_NETS and asked.benchmark != "decathlon":
        return NamedTrunk("default")
    epochs = asked.source_epochs or asked.epochs or PRETRAINING
    name = "-".join([network, f"e{epochs}", *asked.trial])
    path = (asked.output / "sources" / f"{name}.safetensors").absolute()
    return NamedTrunk(str(path), epochs)


def trunk_source(
    asked: Reproduction, network: str, domains: Sequence[BenchmarkImages]
) -> TrunkSource:
    """A network's weights, pretrained on the source domain where nobody has any.

    Raises DataError where that domain's images are missing; InputError where the trunk that is
    there was pretrained on others; what `pretrain_trunk` raises.
    """
    named = named_trunk(asked, network)
    weights = named.weights
    if named.epochs:
        _pretrain(asked, network, named, domains)
    known = None
    if weights != "default":
        with suppress(ConfigError):  # weights from elsewhere say nothing of the source domain
            known = _accuracy(read_source(Path(weights)), weights, asked, domains)
    return TrunkSource(weights, known)


def _accuracy(
    source: Source, weights: str, asked: Reproduction, domains: Sequence[BenchmarkImages]
) -> float | None:
    """A trunk's on the source domain; None where it is another domain's, or of other classes."""
    if source.domain != asked.source:
        return None
    categories = next((x.categories for x in domains if x.name == asked.source), {})
    known, there = len(source.classes), len(categories)
    if there and known != there and not asked.limit_images:
        log.warning("%s: its accuracy is of %d classes, not %d: left out", weights, known, there)
        return None
    if source.views != asked.crops:
        views = source.views or "an unknown number of"
        told = "%s: its accuracy is of %s views of an image, not %d"
        log.warning(told, weights, views, asked.crops)
    return source.accuracy


def images_to_pretrain(
    asked: Reproduction, network: str, domains: Sequence[BenchmarkImages]
) -> BenchmarkImages:
    """The source domain. Raises DataError where its images are missing."""
    for domain in domains:
        if domain.name == asked.source:
            return domain
    raise DataError(
        f"{asked.data} has no {asked.source} to pretrain {network} on: put it there, or give "
        f"--weights {network}=FILE"
    )


def answers_of_source(
    asked: Reproduction, network: str, weights: str, domains: Sequence[BenchmarkImages]
) -> dict[str, list[str]]:
    """The pretrained network's answers for the source's unlabelled images, by the domain's name.

    They are kept in `sources`, with what they are answers of: of others they are asked again.
    Nothing of weights without a head, or without images.
    """
    images = next((x for x in domains if x.name == asked.source and x.unlabelled), None)
    if images is None or weights == "default":
        return {}
    parts = [Path(weights).stem, *asked.trial, f"x{asked.crops}"]
    kept = asked.output / "sources" / f"{'-'.join(parts)}.answers.json"
    numbers = (picture.number for picture in images.unlabelled)
    of = {
        "weights": sha256_file(weights),
        "images": digest_of((images.listing.get("test_stripped", ""), *numbers)),
    }
    if (found := _kept(kept, of)) is not None:
        return {images.name: found}
    source = answering_source(weights, images)
    if source is None:
        return {}
    shape = input_of(asked)
    net = source_network(backbone_of(network, weights), shape.size, source)
    answers = _answers(net, [source.classes], [images], shape, asked.device)
    write_json(kept, {**of, "answers": answers[images.name]})
    return answers


def answering_source(weights: str, images: BenchmarkImages) -> Source | None:
    """The head that answers for the source's images; None, and a line why, where there is none."""
    why = "no head"
    try:
        source = read_source(Path(weights))
        if set(source.classes) <= images.categories.keys():
            return source
        foreign = next(x for x in source.classes if x not in images.categories)
        why = f"a head of other classes, such as {shown(foreign)},"
    except ConfigError:
        pass
    log.warning("%s: %s in %s, so the submission lacks it", images.name, why, weights)
    return None


def _kept(path: Path, of: Mapping[str, Any]) -> list[str] | None:
    """Answers that are kept, if they are of this; an earlier version did not say of what."""
    try:
        value = parse_json(path.read_bytes(), path, DataError)
    except (OSError, DataError):
        return None
    if not isinstance(value, dict) or {key: value.get(key) for key in of} != of:
        return None
    answers: list[str] = value["answers"]
    return answers


def answers_of_run(
    loaded: Checkpoint, domains: Sequence[BenchmarkImages], device: str
) -> dict[str, list[str]]:
    """A finished run's answers for the unlabelled images of its domains, by the domain's name."""
    by_name = {domain.name: domain for domain in domains}
    own = [by_name[facts["name"]] for facts in loaded.meta["domains"]]
    classes = [tuple(facts["classes"]) for facts in loaded.meta["domains"]]
    return _answers(loaded.net, classes, own, loaded.config.input, device)


def _answers(
    net: DomainNet,
    classes: Sequence[Sequence[str]],
    domains: Sequence[BenchmarkImages],
    shape: InputConfig,
    device: str,
) -> dict[str, list[str]]:
    """Class by name for every unlabelled image of each domain, in the network's order."""
    opened = [
        Domain(x.name, tuple(names), nothing, _unlabelled(x.unlabelled, shape), x.mirror, x.crop)
        for x, names in zip(domains, classes, strict=True)
        for nothing in [ImageSet(np.zeros(0, np.int64), _no_image)]
    ]
    found = answer_domains(net.to(device_named(device)), opened, shape)
    return {
        domain.name: [domain.classes[place] for place in found[index].answers.tolist()]
        for index, domain in enumerate(opened)
    }


def _unlabelled(pictures: Sequence[Picture], shape: InputConfig) -> ImageSet:
    return ImageSet(
        np.zeros(len(pictures), np.int64),
        lambda index: decode_image(
            pictures[index].path, str(pictures[index].path), shape.orientation
        ),
    )


def _no_image(index: int) -> Image.Image:
    raise ValueError("nothing is trained here")


def _pretrain(
    asked: Reproduction, network: str, named: NamedTrunk, domains: Sequence[BenchmarkImages]
) -> None:
    """Pretrain a trunk unless it is there, of the same images."""
    path, epochs = Path(named.weights), named.epochs
    if path.is_file():
        known = next((x for x in domains if x.name == asked.source), None)
        _check_pretrained(path, "" if known is None else listing_of(known, UNLEARNED), asked)
        return
    images = images_to_pretrain(asked, network, domains)
    log.info("pretraining %s on %s, %d epochs", network, images.name, epochs)
    config = pretraining(
        backbone_of(network, "none"),
        domain_config(images, final=False),
        input_of(asked),
        ramp=epochs,
        threads=asked.threads,
        device=asked.device,
    )
    pretrain_trunk(config, path, resume=True, images=listing_of(images, UNLEARNED))


def _check_pretrained(path: Path, images: str, asked: Reproduction) -> None:
    """Refuse a trunk that learned from other images."""
    source = read_source(path)
    if source.images and images and source.images != images:
        raise InputError(
            f"{path} was pretrained on other images of {asked.source} (their listing's SHA-256 was "
            f"{source.images[:12]}…, is {images[:12]}…): choose another place with -o, or remove "
            f"it and {path.name}.run"
        )
    if images and not source.images:
        log.warning("%s is of an earlier version, which did not say of which images", path)

"""What a row would meet late, looked for before anything is trained."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from prunion.benchmarks.reproduce.archives import BenchmarkImages, domain_config
from prunion.benchmarks.reproduce.settings import Reproduction, input_of
from prunion.benchmarks.reproduce.sources import (
    answering_source,
    images_to_pretrain,
    named_trunk,
)
from prunion.runtime.images import ImageCheck
from prunion.trainer.data import open_domain

__all__ = ["check_images"]


def check_images(
    asked: Reproduction, networks: Iterable[str], domains: Sequence[BenchmarkImages]
) -> None:
    """Read the images that nothing would read before hours or days of training are over.

    Those that a submission answers for, which only a finished row sees; and those of the rows,
    where a trunk is to be pretrained before the first of them begins. What a submission will lack
    for want of a head is told in a line.

    Args:
        networks: of the rows that are to be run.

    Raises DataError, naming the image, for one that cannot be read, or for classes that differ;
    where there is nothing to pretrain on.
    """
    trunks = {network: named_trunk(asked, network) for network in networks}
    missing = [x for x, own in trunks.items() if own.epochs and not Path(own.weights).is_file()]
    for network in missing:
        images_to_pretrain(asked, network, domains)
    for images in (x for x in domains if x.name == asked.source and x.unlabelled):
        for named in trunks.values():
            if Path(named.weights).is_file():
                answering_source(named.weights, images)  # which says where there is none
    orientation = input_of(asked).orientation
    pictures = [picture.path for domain in domains for picture in domain.unlabelled]
    ImageCheck(orientation, deep_bytes=sys.maxsize).check(pictures, list(map(str, pictures)))
    if missing:
        for domain in domains:
            if domain.name != asked.source:  # which pretraining opens itself
                config = domain_config(domain, final=asked.final)
                open_domain(config, asked.seeds[0], orientation)

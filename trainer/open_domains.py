"""The domains of a run: each rank opens its own and hears of the others'."""

from __future__ import annotations

import json
from collections.abc import Sequence

import numpy as np
from PIL import Image

from prunion.runtime.errors import DataError, PrunionError
from prunion.trainer.config_domains import DomainConfig
from prunion.trainer.domains import Domain, ImageSet, open_domain
from prunion.trainer.ranks import ALONE, Ranks

__all__ = ["open_domains"]


def open_domains(configs: Sequence[DomainConfig], seed: int, ranks: Ranks = ALONE) -> list[Domain]:
    """Open every domain that this rank owns; of the rest it learns classes and counts.

    Raises what `open_domain` raises; DataError with the same words where it was another rank's.
    """
    own: dict[int, Domain] = {}
    facts: dict[str, object] = {}
    broken: PrunionError | None = None
    try:
        for index, config in enumerate(configs):
            if ranks.owns(index):
                own[index] = domain = open_domain(config, seed)
                sets = [(len(part), part.digest) for part in (domain.train, domain.test)]
                facts[str(index)] = {"classes": domain.classes, "sets": sets}
    except PrunionError as exc:
        broken, facts = exc, {"error": str(exc)}
    # A rank that cannot go on says so before it leaves, or the others would wait for it.
    shared = [json.loads(text) for text in ranks.share_text(json.dumps(facts))]
    for theirs in shared:
        if "error" in theirs:
            raise broken or DataError(theirs["error"])
    known = {int(index): fact for theirs in shared for index, fact in theirs.items()}
    return [own.get(i) or _elsewhere(config, known[i]) for i, config in enumerate(configs)]


def _elsewhere(config: DomainConfig, fact: dict) -> Domain:
    train, test = (
        ImageSet(np.zeros(count, np.int64), _unread, digest) for count, digest in fact["sets"]
    )
    classes = tuple(fact["classes"])
    return Domain(config.name, classes, train, test, config.mirror, config.crop)


def _unread(index: int) -> Image.Image:
    raise ValueError("the images of this domain are read by another rank")

"""A graph answers every image for itself: asked once of each, before its first answer is given.

Batches mix domains, and a server mixes requests. A graph in which an image's numbers reach the
answer to another is no bundle's, whoever wrote it, and nothing in its shapes or operators tells.
"""

from __future__ import annotations

import hashlib
import logging
import math
from typing import Any

import numpy as np

from prunion.runtime.backends import SessionOptions, make_ort_session, run
from prunion.runtime.base import (
    Precision,
    arithmetic_of,
    available_bytes,
    reason_of,
)
from prunion.runtime.bundle import Bundle
from prunion.runtime.errors import BundleError, InputError, PrunionError
from prunion.runtime.graph import (
    GraphForm,
    beside_others,
    bytes_of_image,
    compared_batch,
    form_of,
    placed_beside,
)
from prunion.runtime.model.probing.answers import (
    as_taken,
    disagreement,
    probe_pixels,
    spread_domains,
)
from prunion.runtime.model.probing.verdict import Verdict, load_verdict, save_verdict, verdict_key

__all__ = ["COMPARED", "check_beside"]

log = logging.getLogger(__name__)

IMAGES, FOLDER = 4, "beside"  # in the cache, next to what was found of backends
COMPARED = compared_batch(1)
FEWEST = 8  # in the largest batch, where memory is short
WAY = 2  # of asking: what was found another way is asked again
# Of the largest logit: sums in another order round otherwise, and an INT8 step may fall elsewhere.
LIMITS = {"fp32": 1e-3, "fp16": 3e-2, "int8": 0.1}


def check_beside(
    bundle: Bundle,
    precision: Precision,
    options: SessionOptions,
    pinned: bytes | None = None,
    size: int = COMPARED,
) -> None:
    """Return if the graph's answers are those that its images get alone, in ONNX Runtime's CPU.

    What was found is remembered. Where ONNX Runtime's CPU has no answer (it is not installed,
    memory is short, no answer is finite) a warning says that nothing was compared, and where
    memory is left for smaller batches only, that those were.

    Args:
        pinned: the graph of one domain, which stands for all unless they have weights of their
            own; None for the bundle's graph, whose domains are asked all, 64 at most.
        size: how many images are to be answered at a time.

    Raises:
        BundleError: an image's answer depends on the others in its batch.
    """
    held = bundle.held_graph(precision)
    digest = held.sha256
    if pinned is not None and bundle.manifest.own_weights:
        digest = hashlib.sha256(pinned).hexdigest()
    key = verdict_key([digest, precision, pinned is not None], [WAY, LIMITS, size], options)
    verdict = load_verdict(key, FOLDER)
    if verdict is None:
        domains = spread_domains(len(bundle.domains) if pinned is None else 1)
        try:
            graph = held.read() if pinned is None else pinned
            form = form_of(bundle, precision)
            error, whole = _error(graph, form, options, domains, size, pinned=pinned is not None)
        except (PrunionError, MemoryError) as exc:
            log.warning("whether images are mixed is not checked: %s", reason_of(exc))
            return
        limit = LIMITS[arithmetic_of(precision)]
        off = f"an answer is {error:.2g} of the largest logit off its image's alone"
        verdict = Verdict(error, "" if error <= limit else off)
        if whole or verdict.problem:
            save_verdict(key, verdict, FOLDER)
    if verdict.problem:
        raise BundleError(
            f"{bundle.graph(precision)}: images of one batch are mixed ({verdict.problem}): copy "
            "the bundle again, or export it from a network that answers every image for itself"
        )


def _error(
    graph: bytes,
    form: GraphForm,
    options: SessionOptions,
    domains: np.ndarray,
    size: int,
    *,
    pinned: bool,
) -> tuple[float, bool]:
    """How far any answer is off, and whether all batches were asked that are to be.

    In a session of its own, gone when this returns: a large batch's memory would stay with it.

    Raises InputError where memory is short or a batch is refused, PrunionError where it does not
    start.
    """
    pixels = form.spec.height, form.spec.width
    rows = np.resize(domains, max(IMAGES, len(domains)))
    batches = list(placed_beside(len(rows), size))
    if size <= COMPARED:
        batches = list(beside_others(len(rows), *pixels))
    asked, each, free = max(map(len, batches)), bytes_of_image(*pixels), available_bytes()
    most = (free - 4 * len(graph)) // each
    whole = asked <= most
    if not whole and (most < FEWEST or size > COMPARED):
        raise InputError(
            f"ONNX Runtime's CPU needs about {(4 * len(graph) + asked * each) >> 20} MiB of memory "
            f"for batches of {asked}, {free >> 20} MiB are free"
        )
    if not whole:
        batches = list(beside_others(len(rows), *pixels, (1, most)))
        log.warning(
            "whether images are mixed is checked in batches of at most %d, as %d MiB of memory "
            "are free, and again when the bundle is loaded again",
            most,
            free >> 20,
        )
    own = SessionOptions("cpu", options.threads, share_arena=False, spare_memory=True)
    session = make_ort_session(graph, own, {"image"} if pinned else form.needs)
    image = as_taken(probe_pixels(len(rows), form), form)

    def answers(chosen: Any) -> np.ndarray:
        if pinned:
            return run(session, {"image": image[chosen]})
        return run(session, form.feeds(image[chosen], rows[chosen]))

    alone = np.concatenate([answers([place]) for place in range(len(rows))])
    if not np.isfinite(alone).any():
        raise InputError("its answers are not finite")
    return max(_off(alone[chosen], answers(chosen)) for chosen in batches), whole


def _off(alone: np.ndarray, beside: np.ndarray) -> float:
    """`disagreement` over what is a number alone, or nothing, as past a domain's classes.

    An image whose own answer is NaN (float16 divides by what it rounds to 0) says nothing of
    mixing, but the images beside it do: their answers must stay numbers.
    """
    if beside.shape != alone.shape:
        return math.inf
    compared = np.isfinite(alone) | np.isneginf(alone)
    if not np.isfinite(alone).any():
        return 0.0
    return disagreement(np.where(compared, alone, 0), np.where(compared, beside, 0))

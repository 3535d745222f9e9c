"""A graph answers every image for itself: asked once of each, before its first answer is given.

Batches mix domains, and a server mixes requests. A graph in which an image's numbers reach the
answer to another is no bundle's, whoever wrote it, and nothing in its shapes or operators tells.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from prunion.runtime.backends import SessionOptions, make_ort_session, run
from prunion.runtime.base import (
    Precision,
    arithmetic_of,
    available_bytes,
    reason_of,
)
from prunion.runtime.bundle import Bundle, HeldFile, Pack
from prunion.runtime.errors import BundleError, InputError, PrunionError
from prunion.runtime.graph import GraphForm, beside_others, bytes_of_image, form_of
from prunion.runtime.model.probing.answers import as_taken, disagreement, probe_pixels
from prunion.runtime.model.probing.verdict import Verdict, load_verdict, save_verdict, verdict_key

__all__ = ["check_beside"]

log = logging.getLogger(__name__)

IMAGES, FOLDER = 4, "beside"  # in the cache, next to what was found of backends
# Of the largest logit: sums in another order round otherwise, and an INT8 step may fall elsewhere.
LIMITS = {"fp32": 1e-3, "fp16": 3e-2, "int8": 0.1}


def check_beside(
    bundle: Bundle,
    precision: Precision,
    options: SessionOptions,
    graph: HeldFile | bytes | None = None,
    pack: Pack | None = None,
) -> None:
    """Return if the graph's answers are those that its images get alone, in ONNX Runtime's CPU.

    What was found is remembered. Where ONNX Runtime's CPU has no answer (it is not installed,
    memory is short) a warning says that nothing was compared.

    Args:
        graph: what a session is made of; None for the bundle's graph as it is.
        pack: the domain of a pinned graph: of a bundle one stands for all, which have its nodes.

    Raises:
        BundleError: an image's answer depends on the others in its batch.
    """
    held = bundle.held_graph(precision)
    key = verdict_key([held.sha256, precision, pack is not None], [LIMITS], options)
    verdict = load_verdict(key, FOLDER)
    if verdict is None:
        form, graph = form_of(bundle, precision), held if graph is None else graph
        try:
            error = _error(graph, form, options, len(bundle.domains), pinned=pack is not None)
        except (PrunionError, MemoryError) as exc:
            log.warning("whether images are mixed is not checked: %s", reason_of(exc))
            return
        limit = LIMITS[arithmetic_of(precision)]
        off = f"an answer is {error:.2g} of the largest logit off its image's alone"
        verdict = Verdict(error, "" if error <= limit else off)
        save_verdict(key, verdict, FOLDER)
    if verdict.problem:
        raise BundleError(
            f"{bundle.graph(precision)}: images of one batch are mixed ({verdict.problem}): copy "
            "the bundle again, or export it from a network that answers every image for itself"
        )


def _error(
    graph: HeldFile | bytes, form: GraphForm, options: SessionOptions, domains: int, *, pinned: bool
) -> float:
    """In a session of its own, gone when this returns: a large batch's memory would stay with it.

    Raises InputError where memory is short or a batch is refused, PrunionError where it does not
    start.
    """
    size = form.spec.height, form.spec.width
    data = graph.read() if isinstance(graph, HeldFile) else graph
    batches = list(beside_others(IMAGES, *size))
    needed = 4 * len(data) + max(map(len, batches)) * bytes_of_image(*size)
    if (free := available_bytes()) < needed:
        raise InputError(
            f"ONNX Runtime's CPU needs about {needed >> 20} MiB of memory for it, "
            f"{free >> 20} MiB are free"
        )
    own = SessionOptions("cpu", options.threads, share_arena=False, spare_memory=True)
    session = make_ort_session(data, own, {"image"} if pinned else form.needs)
    image = as_taken(probe_pixels(IMAGES, form), form)
    rows = np.linspace(0, domains - 1, IMAGES).astype(np.int64)

    def answers(chosen: Any) -> np.ndarray:
        if pinned:
            return run(session, {"image": image[chosen]})
        return run(session, form.feeds(image[chosen], rows[chosen]))

    alone = np.concatenate([answers([place]) for place in range(IMAGES)])
    if not np.isfinite(alone).any():
        raise InputError("its answers are not finite")
    return max(disagreement(alone[chosen], answers(chosen)) for chosen in batches)

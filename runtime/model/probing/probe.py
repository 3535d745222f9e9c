"""A backend's answers held against ONNX Runtime's CPU, before the first of them is given.

A compiler may turn a graph into another function and say nothing. So each graph that another
backend has compiled answers a few images first, and its verdict is remembered beside the plan.
"""

from __future__ import annotations

import hashlib
import logging
import math
import threading
from collections.abc import Iterator, Mapping

import numpy as np

from prunion.runtime.backends import Session, SessionOptions, make_ort_session, run
from prunion.runtime.base import (
    Backend,
    Precision,
    arithmetic_of,
    available_bytes,
    reason_of,
)
from prunion.runtime.bundle import Bundle, HeldFile, Pack
from prunion.runtime.errors import BackendError, InputError, PrunionError
from prunion.runtime.graph import GraphForm, compared_batch, form_of, pin_form
from prunion.runtime.model.probing.answers import (
    as_taken,
    disagreement,
    probe_pixels,
    spread_domains,
)
from prunion.runtime.model.probing.beside import COMPARED, check_beside
from prunion.runtime.model.probing.verdict import Verdict, load_verdict, save_verdict, verdict_key

__all__ = [
    "BackendProbe",
    "distance",
    "limit_of",
    "slice_limit",
]

log = logging.getLogger(__name__)

TRUSTED = "CPUExecutionProvider"
IMAGES = 4
# Of the largest logit. TF32, in which NVIDIA's GPUs compute float32 unless told otherwise, keeps as
# many bits as float16; for both this is what `prunion verify` allows float16, for INT8 likewise.
FLOAT32, TEN_BITS, EIGHT_BITS = 1e-3, 3e-2, 0.5


class BackendProbe:
    """Checks sessions of one graph of a bundle, with `options`; `images` are what they answer."""

    def __init__(self, bundle: Bundle, precision: Precision, options: SessionOptions) -> None:
        self.bundle = bundle
        self.precision = precision
        self.options = options
        self.form = form_of(bundle, precision)
        self.compared = COMPARED  # batches up to this size are known to mix no images
        self._beside: set[str] = set()  # which kinds of graphs mix none
        self._comparing = threading.Lock()

    def check(
        self,
        session: Session,
        backend: Backend,
        graph: HeldFile | bytes,
        pack: Pack | None = None,
    ) -> None:
        """Return if the session answers as ONNX Runtime's CPU does, and that one image by image.

        Where ONNX Runtime's CPU has no answer (it is not installed, memory is short) a warning
        says that nothing was compared.

        Args:
            graph: what the session was made of.
            pack: the domain of a pinned session; None for a mixed one, which answers for all.

        Raises:
            BackendError: it answers something else, or not at all.
            BundleError: the graph itself mixes the images of a batch.
        """
        self._compare(graph)
        if session.get_providers()[0] == TRUSTED:
            return
        digest = graph.sha256 if isinstance(graph, HeldFile) else hashlib.sha256(graph).hexdigest()
        limit = limit_of(backend, self.precision, self._stated())
        key = verdict_key(
            [digest, self.bundle.held_graph("fp32").sha256, self.precision, pack is not None],
            [backend, list(session.get_providers()), session.digest, limit],
            self.options,
        )
        verdict = load_verdict(key)
        if verdict is None:
            verdict = self._judge(session, backend, limit, pack)
            if verdict is None:
                return
            save_verdict(key, verdict)
        if verdict.problem:
            raise BackendError(
                f"{backend} computes something else of this network than ONNX Runtime's CPU: its "
                f"{self.precision} answer {verdict.problem}: use the backend cpu, or another "
                "version of the library"
            )

    def check_size(self, size: int) -> None:
        """Return if batches of `size` mix no images either, which is asked once for larger ones.

        Raises BundleError where they do.
        """
        with self._comparing:
            if size <= self.compared:
                return
            largest = compared_batch(size)
            for pinned in self._own_graphs():
                check_beside(self.bundle, self.precision, self.options, pinned, largest)
            self.compared = largest

    def _own_graphs(self) -> Iterator[bytes | None]:
        """What stands for all that the bundle answers with: None is its graph of all domains."""
        if not self.bundle.manifest.own_weights:
            yield None
            return
        graph = self.bundle.held_graph(self.precision).read()
        for pack in self._packs():
            yield pin_form(graph, self.form, pack)

    def _compare(self, graph: HeldFile | bytes) -> None:
        """`check_beside` once of the bundle's graph, which asks all domains, and of one that is
        pinned to a domain; of each that is, where their weights are their own."""
        kinds: dict[str, bytes | None] = {}
        if not self.bundle.manifest.own_weights:
            kinds[""] = None
        if isinstance(graph, bytes):
            kinds["pinned" if kinds else hashlib.sha256(graph).hexdigest()] = graph
        for name, pinned in kinds.items():
            if name not in self._beside:
                check_beside(self.bundle, self.precision, self.options, pinned)
                self._beside.add(name)

    def _judge(
        self, session: Session, backend: Backend, limit: float, pack: Pack | None
    ) -> Verdict | None:
        packs = self._packs() if pack is None else [pack]
        pixels = probe_pixels(max(IMAGES, len(packs)), self.form)
        rows = np.arange(len(pixels), dtype=np.int64) % len(packs)
        try:
            reference = self._reference(pixels, rows, packs)
        except (PrunionError, MemoryError) as exc:
            log.warning("%s's answers are not checked: %s", backend, reason_of(exc))
            return None
        image = as_taken(pixels, self.form)
        try:
            error = 0.0
            for chosen in _batches(len(pixels), session.batches):
                feeds: Mapping[str, np.ndarray] = {"image": image[chosen]}
                if pack is None:
                    tables = self.form.tables(packs) if session.needs_tables else None
                    feeds = self.form.feeds(image[chosen], rows[chosen], tables)
                expected, got = reference[chosen], run(session, feeds)
                if got.shape != expected.shape:
                    return Verdict(
                        math.inf, f"has the shape {list(got.shape)}, not {list(expected.shape)}"
                    )
                error = max(error, disagreement(expected, got))
        except InputError as exc:  # no verdict: memory may have been short
            raise BackendError(
                f"{backend} does not answer this network: {exc}: use the backend cpu"
            ) from None
        if not math.isfinite(error):
            return Verdict(error, "is not finite")
        off = f"is {error:.2g} of the largest logit off, over {limit:g}"
        return Verdict(error, "" if error <= limit else off)

    def _packs(self) -> list[Pack]:
        """The bundle's domains, at most 64 of them, evenly spread."""
        names = self.bundle.domains
        return [self.bundle.pack(names[place]) for place in spread_domains(len(names))]

    def _reference(self, pixels: np.ndarray, rows: np.ndarray, packs: list[Pack]) -> np.ndarray:
        """`[N, Cmax]` of the float32 graph in ONNX Runtime's CPU, one image at a time.

        The session is gone when this returns. Raises InputError where it has no answer or memory is
        short, PrunionError where it does not start.
        """
        form, graph = form_of(self.bundle, "fp32"), self.bundle.held_graph("fp32")
        # The bytes, the graph read from them, the weights and their rearranged copies; and
        # activations of 100 channels at full size.
        needed = 4 * graph.size + 400 * form.spec.height * form.spec.width
        if (free := available_bytes()) < needed:
            raise InputError(
                f"ONNX Runtime's CPU needs about {needed >> 20} MiB of memory for it, "
                f"{free >> 20} MiB are free"
            )
        options = SessionOptions("cpu", self.options.threads, share_arena=False, spare_memory=True)
        image = as_taken(pixels, form)
        if self.bundle.manifest.own_weights:  # only a pinned session has its own weights
            pinned = make_ort_session(pin_form(graph.read(), form, packs[0]), options, {"image"})
            parts = [run(pinned, {"image": image[i : i + 1]}) for i in range(len(image))]
        else:
            session = make_ort_session(graph.read(), options, form.needs)
            tables = form.tables(packs)
            parts = [
                run(session, form.feeds(image[i : i + 1], rows[i : i + 1], tables))
                for i in range(len(image))
            ]
        found = np.concatenate(parts)
        counts = np.array([len(packs[row].classes) for row in rows])
        if (np.isfinite(found).sum(1) != counts).any():
            raise InputError("ONNX Runtime's CPU itself gives answers that are not finite")
        return found

    def _stated(self) -> float | None:
        """The variant's largest error at export, if the manifest has one."""
        verified = self.bundle.manifest.verified
        check = None if verified is None else verified.variants.get(self.precision)
        return max(check.max_relative_error.values(), default=None) if check else None


def limit_of(backend: Backend, precision: Precision, stated: float | None = None) -> float:
    """How far a backend may be off, as a share of the largest logit.

    INT8 may be off by twice what the export stated and a tenth: two libraries round differently.
    """
    arithmetic = arithmetic_of(precision)
    if arithmetic == "int8":
        return EIGHT_BITS if stated is None else min(EIGHT_BITS, 0.1 + 2 * stated)
    return FLOAT32 if arithmetic == "fp32" and backend in ("cpu", "openvino") else TEN_BITS


def slice_limit(backend: Backend, precision: Precision) -> float:
    """How far a sliced session may be from the mixed one of the same backend."""
    if arithmetic_of(precision) != "fp32":
        return 2e-2
    return 5e-3 if backend == "cuda" else 1e-4  # TF32's sums depend on the channels beside


def distance(made: Session, mixed: Session, form: GraphForm, pack: Pack) -> float:
    """How far a pinned session is from the mixed one on two random images.

    Raises InputError where a backend cannot run the batch.
    """
    image = form.noise(2)
    feeds = form.feeds(image, np.zeros(2, np.int64), form.tables([pack]))
    return disagreement(run(mixed, feeds), run(made, {"image": image}))


def _batches(count: int, takes: tuple[int, int]) -> list[np.ndarray]:
    """The rows of each batch: all in fours, and the first one alone, within what is taken."""
    least, most = takes
    size = min(max(IMAGES, least), most)
    rows = [np.arange(start, min(start + size, count)) for start in range(0, count, size)]
    return [np.resize(part, max(len(part), least)) for part in [*rows, np.arange(1)]]

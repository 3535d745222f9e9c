"""A loaded bundle that classifies images of any of its domains."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from prunion.runtime.backends import SessionOptions, check_backend, run
from prunion.runtime.bundle import Bundle, open_bundle
from prunion.runtime.errors import InputError
from prunion.runtime.explain import Explanation, explain_model
from prunion.runtime.machine import available_bytes
from prunion.runtime.pack import Pack, check_pack, read_pack
from prunion.runtime.plan import Plan
from prunion.runtime.planner import find_plan
from prunion.runtime.prediction import Candidate, Prediction, to_prediction
from prunion.runtime.preprocess import ImageLike, as_list, check_normalised, to_batch
from prunion.runtime.sessions import TOLERANCE, SessionPool
from prunion.runtime.tables import DomainLike, LiveDomain, Tables

__all__ = ["Candidate", "Model", "Prediction", "load"]

SHARE_OF_MEMORY = 4  # pinned sessions may take a quarter of what is free, unless told otherwise


class Model:
    """Thread-safe; made by `load`."""

    def __init__(self, bundle: Bundle, sessions: SessionPool, tables: Tables) -> None:
        self.bundle = bundle
        self.sessions = sessions
        self._tables = tables
        self._serials = itertools.count(len(tables.domains))
        self._writing, self._planning = threading.Lock(), threading.Lock()
        self._plan: Plan | None = None

    @property
    def domains(self) -> tuple[str, ...]:
        """Domain names; a name's place is its index until a domain before it is removed."""
        return self._tables.names

    def classes(self, domain: DomainLike) -> tuple[str, ...]:
        """The class names of one domain."""
        tables = self._tables
        return tables.domains[tables.index(domain)].pack.classes

    def domain_index(self, domain: DomainLike) -> int:
        """The index of a domain given by name or index. Raises DomainError if there is none."""
        return self._tables.index(domain)

    def domain_indices(
        self, domain: DomainLike | Sequence[DomainLike] | np.ndarray, count: int
    ) -> np.ndarray:
        """`[count]` int64 indices, each checked to exist."""
        return self._tables.indices(domain, count)

    def add_domain(self, pack: Pack | Path | str) -> str:
        """Take in a domain pack while requests run; returns its name.

        Requests that began before do not see it. Raises BundleError for a pack that is damaged
        or of another trunk, InputError for a name that is taken.
        """
        pack = pack if isinstance(pack, Pack) else read_pack(pack)
        manifest, units = self.bundle.manifest, len(self._tables.domains[0].pack.switches)
        features = len(self._tables.domains[0].pack.head_weight)
        check_pack(
            pack,
            trunk_hash=manifest.trunk_hash,
            columns=manifest.bank_columns,
            features=features,
            units=units,
        )
        with self._writing:
            new = self._tables.with_domain(LiveDomain(next(self._serials), pack))
            _ = new.feeds  # built here, not by the first request
            self._tables = new
        return pack.name

    def remove_domain(self, domain: DomainLike) -> str:
        """Drop a domain while requests run; returns its name.

        Requests that began before finish with it; later domains move up by one index. Raises
        DomainError if there is none, InputError for the last one.
        """
        with self._writing:
            index = self._tables.index(domain)
            gone, new = self._tables.domains[index], self._tables.without(index)
            _ = new.feeds
            self._tables = new
        self.sessions.forget(gone.serial)
        return gone.name

    def predict(
        self,
        images: Sequence[ImageLike] | ImageLike,
        domain: DomainLike | Sequence[DomainLike],
        top_k: int = 5,
        batch_size: int = 32,
    ) -> list[Prediction]:
        """Classify images: paths, bytes, PIL images, or arrays as `preprocess.to_batch` says.

        `domain` is one name or index for all images, or one for each. At most `batch_size`
        images are decoded at a time. Raises InputError or DomainError.
        """
        if top_k < 1 or batch_size < 1:
            raise InputError("top_k and batch_size must be at least 1")
        items, tables = as_list(images), self._tables
        if not items:
            raise InputError("no images given: pass at least one")
        rows = tables.indices(domain, len(items))
        predictions: list[Prediction] = []
        for start in range(0, len(items), batch_size):
            part = slice(start, start + batch_size)
            array = to_batch(items[part], self.bundle.manifest.input)
            logits = self._answer(tables, array, rows[part])
            packs = (tables.domains[row].pack for row in rows[part])
            predictions += [to_prediction(*x, top_k) for x in zip(logits, packs, strict=True)]
        return predictions

    def logits(self, array: np.ndarray, domains: Sequence[DomainLike] | np.ndarray) -> np.ndarray:
        """`[N, 3, H, W]` float32 normalised, one domain each → `[N, Cmax]`.

        Logits are `-inf` past a domain's classes. Raises InputError for a wrong shape, type or
        NaN, DomainError for an unknown domain.
        """
        array, tables = check_normalised(array, self.bundle.manifest.input), self._tables
        return self._answer(tables, array, tables.indices(domains, len(array)))

    def tune(self) -> Plan:
        """Measure which sessions answer fastest, unless it is known for this machine already."""
        with self._planning:
            if self._plan is None:
                self._plan = find_plan(self.bundle, self.sessions, self._tables.domains[0].pack)
                self.sessions.slicing = self.sessions.slicing and self._plan.slices
            return self._plan

    def explain(self) -> Explanation:
        """What was chosen on this machine, and why; `print` shows it."""
        return explain_model(self.bundle, self.sessions, self._tables, self._plan)

    def _answer(self, tables: Tables, array: np.ndarray, rows: np.ndarray) -> np.ndarray:
        present, counts = np.unique(rows, return_counts=True)
        domains = [tables.domains[row] for row in present]
        if len(present) == 1:
            return self._single(tables, domains[0], array, rows)
        plan = self._plan or self.tune()
        if plan.splits(counts.tolist()) and self.sessions.can_hold(domains):
            logits = np.full((len(rows), tables.max_classes), -np.inf, np.float32)
            for row, domain in zip(present, domains, strict=True):
                own = rows == row
                logits[own] = self._single(tables, domain, array[own], rows[own])
            return logits
        return self._mixed(tables, array, rows)

    def _single(
        self, tables: Tables, domain: LiveDomain, array: np.ndarray, rows: np.ndarray
    ) -> np.ndarray:
        pinned = self.sessions.pinned(domain)
        if pinned is None:
            return self._mixed(tables, array, rows)
        own = pinned.run(array)
        missing = tables.max_classes - own.shape[1]
        if not missing:
            return own
        return np.pad(own, ((0, 0), (0, missing)), constant_values=-np.inf)

    def _mixed(self, tables: Tables, array: np.ndarray, rows: np.ndarray) -> np.ndarray:
        session, feeds = self.sessions.mixed(), {"image": array, "domain": rows}
        if not tables.stored or getattr(session, "needs_tables", False):
            feeds |= tables.feeds
        return run(session, feeds)


def load(
    path: Path | str,
    backend: str = "auto",
    *,
    precision: str = "fp32",
    threads: int | None = None,
    memory_limit: int | None = None,
    slicing: bool = True,
    tune: bool = False,
) -> Model:
    """Open a bundle and check its files; sessions are made on first use.

    Args:
        backend: `auto` (CUDA where it works, else CPU), `cpu`, `cuda` or `openvino`.
        threads: threads inside one operator; None leaves it to the backend.
        memory_limit: bytes that pinned sessions may hold together, beside the mixed one; 0 for
            none of them, None for a quarter of the memory that is free now.
        slicing: whether pinned sessions may leave out channels that their domain does not use.
        tune: measure now whether to split mixed batches, not at the first of them.

    Raises BundleError, BackendError, MissingDependencyError.
    """
    check_backend(backend)
    bundle = open_bundle(path)
    options = SessionOptions(backend=backend, threads=threads)
    limit = available_bytes() // SHARE_OF_MEMORY if memory_limit is None else memory_limit
    if limit < 0:
        raise InputError(f"memory_limit is {limit}: give bytes, 0 or more")
    spec = bundle.manifest.input
    pool = SessionPool(
        bundle.graph(precision),
        options,
        (spec.height, spec.width),
        bundle.unit_table() if slicing else None,
        limit,
        TOLERANCE if precision == "fp32" else 200 * TOLERANCE,
    )
    packs = enumerate(bundle.pack(name) for name in bundle.domains)
    model = Model(bundle, pool, Tables(tuple(LiveDomain(*x) for x in packs), stored=True))
    if tune:
        model.tune()
    return model

"""A loaded bundle, which classifies images of any of its domains."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import NoReturn

import numpy as np

from prunion.runtime.backends import run
from prunion.runtime.base import whole_argument
from prunion.runtime.bundle import Bundle, Pack
from prunion.runtime.errors import InputError
from prunion.runtime.images import ImageLike, as_list, to_batch, to_pixels
from prunion.runtime.model.admission import fitting_pack
from prunion.runtime.model.domains import DomainLike, LiveDomain, Tables
from prunion.runtime.model.explain import Explanation, explain_model
from prunion.runtime.model.pinned import Background
from prunion.runtime.model.plan import Plan, find_plan
from prunion.runtime.model.pool import SessionPool
from prunion.runtime.model.prediction import Prediction, not_finite, to_prediction
from prunion.runtime.model.trials import Trials

__all__ = ["Model"]


class Model:
    """Thread-safe; made by `load`. With `with`, or `close`, its memory is given back."""

    def __init__(self, bundle: Bundle, sessions: SessionPool, tables: Tables) -> None:
        self.bundle = bundle
        self.sessions = sessions
        self._tables = tables
        self._serials = itertools.count(len(tables.domains))
        self._writing, self._planning = threading.Lock(), threading.Lock()
        self._plan: Plan | None = None
        self.trials: Trials | None = None  # of a server
        self.background: Background | None = None  # of a server, whose batches wait for no session
        self._scratch = threading.local()

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

    @property
    def snapshot(self) -> Tables:
        """The domains at this moment, which nothing changes any more."""
        return self._tables

    @property
    def max_classes(self) -> int:
        """Cmax, the width of `logits`: the most classes that any domain has now."""
        return self._tables.max_classes

    def add_domain(self, pack: Pack | Path | str) -> str:
        """Take in a domain pack while requests run; returns its name.

        Requests that began before do not see it. Raises BundleError for a pack that is damaged
        or of another trunk, InputError for a name that is taken, in a specialised bundle, and
        where an engine was built for fewer domains or classes.
        """
        pack = self._fitting(pack)
        with self._writing:
            new = self._tables.with_domain(LiveDomain(next(self._serials), pack))
            feeds = new.feeds  # built here, not by the first request
            if not self.sessions.pins:  # an engine: no request could be answered past its profile
                self.sessions.mixed().check_tables(feeds)
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
        self.sessions.forget(gone)
        return gone.name

    def admit(self, pack: Pack | Path | str) -> LiveDomain:
        """A domain for `answer` alone: it gets no index, and may have a name that is taken.

        Raises BundleError for a pack that is damaged or of another trunk, InputError in a
        specialised bundle, and where an engine was built for fewer classes.
        """
        domain = LiveDomain(next(self._serials), self._fitting(pack))
        if not self.sessions.pins:
            self.sessions.mixed().check_tables(Tables((domain,), self.sessions.form).feeds)
        return domain

    def release(self, domain: LiveDomain) -> None:
        """Drop the session of a domain that `admit` gave; requests that run finish with it."""
        self.sessions.forget(domain)

    def predict(
        self,
        images: Sequence[ImageLike] | ImageLike,
        domain: DomainLike | Sequence[DomainLike],
        top_k: int = 5,
        batch_size: int = 32,
    ) -> list[Prediction]:
        """Classify images.

        Args:
            images: one or many: paths, encoded bytes, PIL images, or uint8 arrays `[H, W, 3]`.
            domain: one name or index for all images, or one for each.
            top_k: how many of a domain's classes each answer holds, best first.
            batch_size: most images that are decoded and run at a time.

        Raises:
            InputError: an image cannot be read, or a number is out of range.
            DomainError: a domain is not one of the model's.
            BackendError: the answer of a float16 or INT8 graph is not finite; BundleError: of fp32.
        """
        top_k, batch_size = whole_argument("top_k", top_k), whole_argument("batch_size", batch_size)
        items, tables = as_list(images), self._tables
        if not items:
            raise InputError("no images given: pass at least one")
        rows, predictions = tables.indices(domain, len(items)), list[Prediction]()
        for start in range(0, len(items), batch_size):
            part = slice(start, start + batch_size)
            logits = self._answer(tables, self._images(items[part]), rows[part])
            packs = (tables.domains[row].pack for row in rows[part])
            predictions += [to_prediction(*x, top_k) for x in zip(logits, packs, strict=True)]
        return predictions

    def logits(self, array: np.ndarray, domains: Sequence[DomainLike] | np.ndarray) -> np.ndarray:
        """`[N, 3, H, W]` float32 normalised, one domain for all or for each → `[N, Cmax]`.

        A uint8 graph takes `[N, H, W, 3]` uint8 instead. Logits are `-inf` past a domain's
        classes. Raises InputError for a wrong shape, type or NaN, DomainError for an unknown
        domain, BackendError where a float16 or INT8 graph's answer is not finite.
        """
        array, tables = self.sessions.form.prepare(array), self._tables
        return self._answer(tables, array, tables.indices(domains, len(array)))

    def answer(self, array: np.ndarray, domains: Sequence[LiveDomain]) -> np.ndarray:
        """`[N, ...]` as `GraphForm.prepare` gives it, a domain for each → `[N, Cmax]` of theirs.

        The domains need not be the model's any more, or yet: a request is answered by the very
        packs it was accepted for. Raises InputError for NaN.
        """
        tables = self._tables
        if not all(domain.serial in tables.rows for domain in domains):
            tables = Tables(tuple(dict.fromkeys(domains)), self.sessions.form)
        rows = np.array([tables.rows[domain.serial] for domain in domains], np.int64)
        return self._answer(tables, array, rows)

    def tune(self) -> Plan:
        """Measure which sessions answer fastest, unless it is known for this machine already."""
        with self._planning:
            if self._plan is None:
                packs = [domain.pack for domain in self._tables.domains]
                self._plan = find_plan(self.sessions, packs)
                self.sessions.slicing = self.sessions.slicing and self._plan.slices
            return self._plan

    def pin_in_background(self, share: float = 0.0) -> None:
        """From now on no answer waits for a session to be made: the mixed one answers meanwhile.

        Where all domains may have theirs, they are made at once, else for those that are asked for
        often, and take at least `share` of the batches.
        """
        if not self.sessions.pins:
            return
        self.background = Background(self.sessions.ready, self.sessions.pinned, share)
        domains = self._tables.domains
        for domain in domains if self.sessions.can_hold(list(domains)) else ():
            self.background.want(domain)

    def explain(self) -> Explanation:
        """What was chosen on this machine, and why; `print` shows it."""
        return explain_model(self.bundle, self.sessions, self._tables, self._plan)

    def close(self) -> None:
        """Give back sessions and files; requests that run finish, later ones raise InputError."""
        if self.background is not None:
            self.background.close()
        self.sessions.close()
        self.bundle.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "a loaded model cannot be pickled or copied: give the other process the bundle's path, "
            "and load it there"
        )

    def _fitting(self, pack: Pack | Path | str) -> Pack:
        return fitting_pack(pack, self.bundle, self.sessions, self._tables)

    def _images(self, items: list[ImageLike]) -> np.ndarray:
        form = self.sessions.form
        read = to_pixels if form.image == "uint8" else to_batch
        return form.prepare(read(items, form.spec))

    def _answer(self, tables: Tables, array: np.ndarray, rows: np.ndarray) -> np.ndarray:
        if len(array) > self.sessions.probe.compared:
            self.sessions.probe.check_size(len(array))
        logits = self._routed(tables, array, rows)
        # Past a domain's classes they are -inf. In plain Python: at batch 1 a microsecond counts.
        if np.count_nonzero(np.isfinite(logits)) < sum(map(tables.counts.__getitem__, rows)):
            self._refuse(tables, array, logits, rows)
        return logits

    def _refuse(
        self, tables: Tables, array: np.ndarray, logits: np.ndarray, rows: np.ndarray
    ) -> NoReturn:
        """Raise what `not_finite` gives for the first answer that is not."""
        place = int((np.isfinite(logits).sum(1) < np.array(tables.counts)[rows]).argmax())
        sessions, name = self.sessions, tables.names[rows[place]]
        ordinary = sessions.form.ordinary(array[place])
        raise not_finite(name, sessions.probe.precision, sessions.provider(), ordinary=ordinary)

    def _routed(self, tables: Tables, array: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """The logits, by whatever sessions the plan says."""
        listed = rows.tolist()
        if listed.count(listed[0]) == len(listed):
            if self._plan is not None and self._plan.joins(len(listed)):
                return self._mixed(tables, array, rows)
            return self._single(tables, tables.domains[listed[0]], array, rows)
        places: dict[int, list[int]] = {}
        for place, row in enumerate(listed):
            places.setdefault(row, []).append(place)
        if self.sessions.apart:
            return self._split(tables, array, places)
        domains = [tables.domains[row] for row in places]
        plan, counts = self._plan or self.tune(), tuple(map(len, places.values()))
        splits, trials, pool = plan.splits(counts), self.trials, self.sessions
        if trials is not None:
            splits = trials.splits(counts, splits, lambda: pool.can_hold(domains, ready=True))
        splits = splits and (self.background or pool).can_hold(domains)
        logits = self._split(tables, array, places) if splits else self._mixed(tables, array, rows)
        if trials is not None:
            trials.record(counts, splits)
        return logits

    def _split(self, tables: Tables, array: np.ndarray, places: dict[int, list[int]]) -> np.ndarray:
        logits = np.empty((len(array), tables.max_classes), np.float32)
        for row, own in places.items():
            images = self._gathered(array, own)
            rows = np.full(len(own), row, np.int64)
            logits[own] = self._single(tables, tables.domains[row], images, rows)
        return logits

    def _gathered(self, array: np.ndarray, places: list[int]) -> np.ndarray:
        """`array[places]` in memory that this thread keeps: fresh memory is slow to touch."""
        kept: np.ndarray | None = getattr(self._scratch, "images", None)
        if kept is None or len(kept) < len(places):
            kept = self._scratch.images = np.empty((len(places), *array.shape[1:]), array.dtype)
        return np.take(array, places, axis=0, out=kept[: len(places)], mode="clip")

    def _single(
        self, tables: Tables, domain: LiveDomain, array: np.ndarray, rows: np.ndarray
    ) -> np.ndarray:
        pinned = (self.background or self.sessions).pinned(domain)
        if pinned is None:
            return self._mixed(tables, array, rows)
        self.sessions.form.check_values(array)
        own = pinned.run(array)
        if own.shape[1] == tables.max_classes:
            return own
        logits = np.full((len(own), tables.max_classes), -np.inf, np.float32)
        logits[:, : own.shape[1]] = own  # np.pad takes ten times as long
        return logits

    def _mixed(self, tables: Tables, array: np.ndarray, rows: np.ndarray) -> np.ndarray:
        session = self.sessions.mixed()
        self.sessions.form.check_values(array)
        fed = session.needs_tables or not tables.stored
        return run(session, self.sessions.form.feeds(array, rows, tables.feeds if fed else None))

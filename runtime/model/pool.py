"""The sessions of one graph: the mixed one, and pinned (single-domain) ones on first use.

Under a limit of memory the least recently used pinned session leaves.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from weakref import WeakSet

from prunion.runtime.backends import Session, SessionOptions, make_mixed, make_session, real_backend
from prunion.runtime.base import Backend, default_round_to
from prunion.runtime.bundle import HeldFile, Pack, UnitTable, check_one_trunk
from prunion.runtime.errors import BackendError, BundleError, InputError, UnsupportedGraphError
from prunion.runtime.graph import pin_form
from prunion.runtime.model.domains import LiveDomain
from prunion.runtime.model.pinned import Pinned
from prunion.runtime.model.probing import BackendProbe, distance, slice_limit

__all__ = ["SessionPool"]

log = logging.getLogger(__name__)
PATIENCE = 4
FULL = (BackendError, InputError)  # when a session is made, and when it first runs


class SessionPool:
    """Thread-safe: two threads that ask for one session get the same one.

    Each new session is held to `probe`. One that `auto` chose and that answers something else
    gives way to ONNX Runtime's CPU, as do all after it. `table` is the unit table to slice by
    (None: never). A graph of a single domain has the one session `mixed`, which then takes the
    image alone; so has a backend that gives its own, `open_mixed`, and pins none.
    `limit` bounds the sizes of the pinned graphs together, in bytes. A full pool lets its least
    recently used session go only for a domain that asked `PATIENCE` times in vain, so that many
    domains in turn are answered by the mixed session instead of rebuilding sessions for ever.
    `full` says why a GPU took no more of them, until a domain is removed.
    Domains with own weights stand `apart`: pinned sessions answer, one at least whatever the limit.
    """

    def __init__(
        self,
        graph: HeldFile,
        options: SessionOptions,
        probe: BackendProbe,
        table: UnitTable | None,
        limit: int,
        open_mixed: Callable[[], Session] | None = None,
        *,
        apart: bool = False,
    ) -> None:
        self.graph = graph
        self.options = options
        self.probe, form = probe, probe.form
        self.form, self.size = form, (form.spec.height, form.spec.width)
        self.limit, self.apart = limit, apart
        self.pins = open_mixed is None and not form.single
        self.slicing, self._refused = table is not None and self.pins, ""
        self.table = None if table is None else form.unit_table(table)
        self.typical = graph.size
        self._pinned: OrderedDict[int, Future[Pinned | None]] = OrderedDict()
        self._ready: dict[int, Pinned] = {}
        self._asked: Counter[int] = Counter()
        self._gone: WeakSet[LiveDomain] = WeakSet()
        self._mixed: Session | None = None
        self._open_mixed, self.full = open_mixed, ""  # not its own method, which would hold it
        self.closed = self._distrusted = False
        self._lock, self._mixed_lock = threading.Lock(), threading.Lock()

    def mixed(self) -> Session:
        """The session that takes `image`, `domain` and fed tables. Raises InputError if apart."""
        check_one_trunk(self.probe.bundle, "a mixed session")
        session = self._mixed
        if session is None:
            with self._mixed_lock:
                self._check_open()
                if self._mixed is None:
                    self._mixed = self._prove(self._open_mixed or self.make_mixed, self.graph)
                session = self._mixed
        return session

    def make_mixed(self) -> Session:
        """A plain mixed session, kept by nobody."""
        options = self.chosen() if self._distrusted else self.options
        return make_mixed(self.graph.read(), options, self.form.needs)

    def adopt(self, session: Session) -> None:
        """From now on `session` answers mixed batches, in the plain one's place."""
        with self._mixed_lock:
            self._check_open()
            self._mixed = session

    def _prove(
        self, make: Callable[[], Session], graph: HeldFile | bytes, pack: Pack | None = None
    ) -> Session:
        """A session that answers right; `make` is asked again where `auto` takes to the CPU."""
        session = make()
        backend = real_backend(self.options.backend, str(session.get_providers()[0]))
        try:
            self.probe.check(session, backend, graph, pack)
        except BackendError as exc:
            if self.options.backend != "auto":
                raise
            log.warning("%s; ONNX Runtime's CPU answers instead", exc)
            self._distrusted = True
            return make()
        return session

    def _make_pinned(self, graph: bytes, pack: Pack) -> Session:
        return self._prove(lambda: make_session(graph, self.chosen(), {"image"}), graph, pack)

    def close(self) -> None:
        """Let all sessions go and make none any more; requests that run finish with theirs."""
        with self._mixed_lock, self._lock:
            self.closed, self._mixed = True, None
            self._pinned.clear()
            self._ready.clear()

    def _check_open(self) -> None:
        if self.closed:
            raise InputError("the model is closed: load its bundle again")

    def provider(self) -> str:
        """What answers: the first provider of a session that is there, else an empty text."""
        sessions = [self._mixed, *(x.session for x in self.resident().values())]
        return next((str(x.get_providers()[0]) for x in sessions if x is not None), "")

    def chosen(self) -> SessionOptions:
        """The options with `auto` replaced by what the first session runs on, once there is one."""
        cpu, asked = self._distrusted, self.options.backend
        return replace(self.options, backend="cpu" if cpu else real_backend(asked, self.provider()))

    def backend(self) -> Backend:
        """What answers; where `auto` leaves a choice, the mixed session is made to decide it."""
        if self.chosen().backend == "auto":
            self.mixed()
        return self.chosen().backend

    def note(self) -> str:
        """What the mixed session has to say of itself, if it is there."""
        return "" if self._mixed is None else self._mixed.note()

    def resident(self) -> dict[int, Pinned]:
        """The pinned sessions that are ready, by serial, least recently used first."""
        with self._lock:
            return {serial: self._ready[serial] for serial in self._pinned if serial in self._ready}

    def ready(self, domain: LiveDomain) -> Pinned | None:
        """The session of one domain if it is there; it is the last to leave then."""
        with self._lock:
            self._check_open()
            found = self._ready.get(domain.serial)
            if found is not None:
                self._pinned.move_to_end(domain.serial)
            return found

    def pinned(self, domain: LiveDomain, *, patient: bool = True) -> Pinned | None:
        """The session of one domain, or None if the mixed one should answer for it.

        A caller that holds a session that left may finish with it.
        """
        ready, serial = self.ready(domain) if self.pins else None, domain.serial
        if ready is not None or not self.pins:
            return ready
        with self._lock:
            future = self._pinned.get(serial)
            if future is None:
                # A request that began before its domain went must not make a session to stay.
                gone = domain in self._gone
                if not self.apart and (gone or self.full or not self._finds_room(serial, patient)):
                    return None
                future, mine = Future(), True
                if not gone:
                    self._make_room()
                    self._pinned[serial] = future
            else:
                mine = False
            if serial in self._pinned:
                self._pinned.move_to_end(serial)
        # Made outside of the lock: other domains' requests go on, those for this one wait for it.
        if mine:
            self._fill(serial, future, domain.pack)
        return future.result()

    def can_hold(self, domains: list[LiveDomain], *, ready: bool = False) -> bool:
        """Whether pinned sessions of all `domains` fit beside each other, or are `ready`."""
        if not self.pins:
            return False
        with self._lock:
            if all(domain.serial in self._ready for domain in domains):
                return True
            if self.full or ready:
                return False
            missing = sum(domain.serial not in self._pinned for domain in domains)
            return self._used() + missing * self.typical <= self.limit

    def forget(self, domain: LiveDomain) -> None:
        """Drop a removed domain's session, and make none for it any more."""
        with self._lock:
            self._gone.add(domain)
            self._pinned.pop(domain.serial, None)
            self._ready.pop(domain.serial, None)
            self._asked.pop(domain.serial, None)
            self.full = ""

    def make(self, pack: Pack, *, sliced: bool) -> Pinned:
        """A new session, kept by nobody; sliced where that is possible and exact."""
        if sliced and self.table is not None:
            note = self._refused
            if not note:
                alive = self.table.round_up(pack.switches, default_round_to())
                if alive.all():
                    return self._plain(pack, "it uses every channel of the union")
                note = f"sliced to {int(alive.sum())} of {len(alive)} channel units"
                try:
                    graph = pin_form(self.graph.read(), self.form, pack, self.table, alive)
                    made = self._make_pinned(graph, pack)
                    return self._checked(pack, Pinned(made, len(graph), sliced=True, note=note))
                except (UnsupportedGraphError, BundleError, *FULL) as exc:
                    note = f"sliced, it cannot be run: {exc}"
                    if isinstance(exc, UnsupportedGraphError):  # so it is for every domain
                        note = self._refused = str(exc)
            return self._plain(pack, note)
        return self._plain(pack, "weights of its own" if pack.own else "slicing is off")

    def _plain(self, pack: Pack, note: str) -> Pinned:
        graph = pin_form(self.graph.read(), self.form, pack)
        return Pinned(self._make_pinned(graph, pack), len(graph), sliced=False, note=note)

    def _checked(self, pack: Pack, made: Pinned) -> Pinned:
        """`made` if it answers like the mixed graph on one random batch, else an unsliced one."""
        error = distance(made.session, self.mixed(), self.form, pack)
        if error <= slice_limit(self.chosen().backend, self.probe.precision):
            return made
        return self._plain(pack, f"sliced, it differs from the mixed graph by {error:.1e}")

    def _fill(self, serial: int, future: Future[Pinned | None], pack: Pack) -> None:
        try:
            made = self._make_to_stay(pack)
        except BaseException as exc:
            with self._lock:
                self._pinned.pop(serial, None)
            # A GPU without room is no error as long as the mixed session can answer instead.
            if self._mixed is not None and isinstance(exc, FULL) and self._on_gpu():
                self.full = str(exc)
                future.set_result(None)
            else:
                future.set_exception(exc)
            return
        self.typical = made.bytes
        future.set_result(made)
        with self._lock:
            if self._pinned.get(serial) is future:  # unless it was forgotten meanwhile
                self._ready[serial] = made
            while self._used() > self.limit and len(self._pinned) > 1:
                gone, _ = self._pinned.popitem(last=False)
                self._ready.pop(gone, None)

    def _make_to_stay(self, pack: Pack) -> Pinned:
        """A pinned session; on a GPU with all the memory that it and the mixed one need."""
        if self.apart or not self._on_gpu():
            return self.make(pack, sliced=self.slicing)
        self.mixed()  # first: it must answer when there is no room for more
        made = self.make(pack, sliced=self.slicing)
        made.run(self.form.noise(1))
        return made

    def _on_gpu(self) -> bool:
        return self.chosen().backend in ("auto", "cuda")

    def _used(self) -> int:
        ready = [self._ready.get(serial) for serial in self._pinned]
        return sum(self.typical if made is None else made.bytes for made in ready)

    def _make_room(self) -> None:
        """Where nothing else answers: let sessions go, least recently used first, for one more."""
        for serial in list(self._pinned) if self.apart else ():
            if self._has_room():
                return
            if serial in self._ready:  # who still makes one needs it at once
                del self._pinned[serial], self._ready[serial]

    def _has_room(self) -> bool:
        return self._used() + self.typical <= self.limit

    def _finds_room(self, serial: int, patient: bool) -> bool:
        if self._has_room():
            return True
        if self.typical > self.limit:
            return False
        self._asked[serial] += 1
        if patient and self._asked[serial] <= PATIENCE:
            return False
        self._asked.clear()
        return True

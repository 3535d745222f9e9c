"""What `prunion bench` times: a bundle's own sessions, each opened when it is asked for."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np

from prunion.runtime.backends import (
    Session,
    SessionOptions,
    check_backend,
    make_session,
    real_backend,
    run,
)
from prunion.runtime.base import HEADS, Backend, Precision, arithmetic_of
from prunion.runtime.bundle import Bundle, Pack, multiples_below, open_bundle
from prunion.runtime.errors import UnsupportedGraphError
from prunion.runtime.graph import GraphForm, pin_form
from prunion.runtime.measure.comparison import Comparison
from prunion.runtime.model import SessionPool, open_blocked, open_pool

__all__ = [
    "Contender",
    "Opened",
    "Setup",
    "contenders",
    "cut_to_blocks",
    "domain_rows",
    "open_all",
    "pairs_of",
    "session_calls",
    "widths_cost",
]


@dataclass(frozen=True)
class Setup:
    """What is timed, in plain values, so that a fresh process can be told the same.

    Attributes:
        domains: `mixed` (batches go round all domains; a pinned session is the first domain's) or
            one domain's name for everything.
        against: rivals, as `--against` names them.
        unpruned: the selectable ONNX graph of the unpruned network; empty where no rival needs it.
        pruned: the graphs of each rival that Torch-Pruning makes, by its name.
    """

    bundle: str
    domains: str = "mixed"
    backend: Backend = "cpu"
    precision: Precision = "fp32"
    threads: int | None = None
    against: tuple[str, ...] = ()
    unpruned: str = ""
    pruned: dict[str, list[str]] = field(default_factory=dict)

    @property
    def options(self) -> SessionOptions:
        """How sessions run. Raises PrunionError for an unknown backend."""
        return SessionOptions(check_backend(self.backend), self.threads)


@dataclass(frozen=True)
class Opened:
    """A loaded contender.

    Attributes:
        call: of a batch size; one batch of random images ready to be answered.
        provider: what answers, as a session says of itself.
        file_bytes: of what a rival is loaded from; 0 for the bundle's own sessions.
        check: of a batch size; of a graph that is not prunion's own, raises what it fails with, and
            gives what could not be checked, or "".
        engine_bytes: of the compiled engine, where there is one, and scratch_bytes what one context
            of it takes on the GPU beside its weights, as it says itself.
    """

    call: Callable[[int], Callable[[], object]]
    provider: str
    file_bytes: int = 0
    engine_bytes: int | None = None
    scratch_bytes: int | None = None
    check: Callable[[int], str] | None = None


@dataclass(frozen=True)
class Contender:
    """One thing that is timed.

    Attributes:
        open: loads it. A fault of the bundle or the backend is raised here.
        one_domain: whether it answers images of one domain only.
        one_each: whether it takes a batch apart by domain, so that it matters which there are.
        spare: whether `open` may find that there is no such thing here: UnsupportedGraphError.
        domains: what the batches of its bundle go round, of which a pinned session has the first;
            empty of what is no bundle's and is given BUNDLE's own.
        aside: whether it is timed for one figure only, and no session that answers anybody.
        digest: of what it is opened from, which tells a process that opens it anew whether another
            has taken its place.
    """

    name: str
    open: Callable[[], Opened]
    one_domain: bool = False
    one_each: bool = False
    spare: bool = False
    domains: tuple[str, ...] = ()
    aside: bool = False
    digest: str = ""


def contenders(setup: Setup, bundle: Bundle | None = None) -> list[Contender]:
    """The mixed session and a pinned one; `single` of a specialised bundle, which has no other.

    `blocked` is the mixed session in ONNX Runtime's blocked layout, on the CPU.

    Where domains have weights of their own, `split` takes a batch apart instead of the first.

    Raises:
        BundleError: the bundle is damaged, or there is no such graph.
        DomainError: `setup.domains` is no domain of the bundle.
    """
    bundle = bundle or open_bundle(Path(setup.bundle))
    rows = domain_rows(bundle, setup.domains)
    pool = open_pool(bundle, setup.options, setup.precision)
    form = pool.form

    def mixed() -> Opened:
        session = pool.mixed()
        fed = bundle.domains if session.needs_tables else ()
        tables = form.tables([bundle.pack(x) for x in fed]) if fed else None
        return session_calls(session, form, rows, tables, single=form.single)

    def pinned(pack: Pack) -> Opened:
        session = pool.make(pack, sliced=False).session
        return session_calls(session, form, rows, single=True)

    def blocked() -> Opened:
        session = open_blocked(pool, [bundle.pack(x) for x in bundle.domains])
        if isinstance(session, str):
            raise UnsupportedGraphError(f"not in ONNX Runtime's blocked layout: {session}")
        tables = form.tables([bundle.pack(x) for x in bundle.domains])
        return session_calls(session, form, rows, tables)

    names = tuple(bundle.domains[row] for row in rows)
    if form.single:
        return [Contender("single", mixed, one_domain=True, domains=names, digest=bundle.digest)]
    if pool.apart:
        split = partial(_split_by_domain, pool, bundle, rows)
        found = [Contender("split", split, one_each=True)]
    else:
        found = [Contender("mixed", mixed)]
        fits = real_backend(setup.backend) == "cpu" and arithmetic_of(setup.precision) == "fp32"
        if pool.pins and fits:
            found.append(Contender("blocked", blocked, spare=True))
    if pool.pins:
        pack = bundle.pack(bundle.domains[rows[0]])
        found.append(Contender(f"pinned:{pack.name}", partial(pinned, pack), one_domain=True))
    return [replace(x, domains=names, digest=bundle.digest) for x in found]


def cut_to_blocks(setup: Setup, bundle: Bundle, block: int) -> tuple[Contender, float] | None:
    """The pinned session cut to widths in multiples of `block`, those below what it has, and the
    share of multiplications that are left; None where there is no such session.

    Other answers, but what widths cost that fill a block in part.
    """
    if bundle.manifest.own_weights or HEADS[bundle.manifest.heads] == "single":
        return None
    pool = open_pool(bundle, setup.options, setup.precision)
    rows, table = domain_rows(bundle, setup.domains), pool.table
    if table is None or not pool.pins:
        return None
    pack, (alive, share) = bundle.pack(bundle.domains[rows[0]]), multiples_below(table, block)
    if alive.all():  # what is narrower than a block stays
        return None

    def opened() -> Opened:
        graph = pin_form(pool.graph.read(), pool.form, pack, table, alive)
        session = make_session(graph, pool.chosen(), {"image"})
        return session_calls(session, pool.form, rows, single=True)

    name = f"pinned:{pack.name} cut to multiples of {block}"
    return Contender(name, opened, one_domain=True, spare=True, aside=True), share


def _split_by_domain(pool: SessionPool, bundle: Bundle, rows: list[int]) -> Opened:
    """A session for each domain, and calls that give each its part of a batch."""
    made = {row: pool.make(bundle.pack(bundle.domains[row]), sliced=False) for row in rows}

    def call(batch: int) -> Callable[[], object]:
        image, domain = pool.form.noise(batch), np.resize(np.array(rows, np.int64), batch)
        parts = {int(row): np.flatnonzero(domain == row) for row in np.unique(domain)}
        return lambda: [made[row].run(image[places]) for row, places in parts.items()]

    return Opened(call, str(made[rows[0]].session.get_providers()[0]))


def session_calls(
    session: Session,
    form: GraphForm,
    rows: list[int],
    tables: dict[str, np.ndarray] | None = None,
    *,
    single: bool = False,
) -> Opened:
    """Calls of one session: random images of domains that go round `rows`, if it takes them."""

    def call(batch: int) -> Callable[[], object]:
        image = form.noise(batch)
        domain = np.resize(np.array(rows, dtype=np.int64), batch)
        feeds = {"image": image} if single else form.feeds(image, domain, tables)
        return partial(run, session, feeds)

    # Of those that TensorRT runs; ONNX Runtime and OpenVINO do not tell.
    engine, scratch = (getattr(session, x, None) for x in ("engine_bytes", "memory_bytes"))
    provider = str(session.get_providers()[0])
    return Opened(call, provider, engine_bytes=engine, scratch_bytes=scratch)


def domain_rows(bundle: Bundle, domains: str) -> list[int]:
    """The rows that batches go round: all of `mixed`, whatever a domain is called.

    Raises DomainError.
    """
    if domains == "mixed":
        return list(range(len(bundle.domains)))
    bundle.domain(domains)
    return [bundle.domains.index(domains)]


def pairs_of(
    own: Sequence[Contender], rivals: Sequence[Contender]
) -> list[tuple[Contender, Contender]]:
    """What is compared with what: only things that could answer the same images."""
    pairs = [(one, own[0]) for one in own[1:]]
    return [*pairs, *((one, other) for one in own for other in rivals if _alike(one, other))]


def _alike(one: Contender, other: Contender) -> bool:
    """Whether a rival could stand in for a session.

    Where batches of either are mixed, a session of one domain could not stand in for one of all,
    nor for one of another domain, and how many calls separate networks need hangs on the domains,
    of which a pinned session has one.
    """
    if max(len(one.domains), len(other.domains)) < 2:
        return True
    alone, rival_alone = (x.one_domain or len(x.domains) == 1 for x in (one, other))
    if alone and rival_alone:
        return not other.domains or one.domains[0] == other.domains[0]
    if rival_alone or (alone and other.one_each):
        return False
    return len(one.domains) > 1  # a bundle of one domain has no mixed batches


def open_all(
    entered: Sequence[Contender],
) -> tuple[dict[str, Opened], dict[str, float], list[str]]:
    """What could be loaded, what trying took in milliseconds, and why what may be missing is."""
    opened, load_ms, missing = {}, {}, []
    for x in entered:
        start = time.perf_counter()
        try:
            opened[x.name] = x.open()
        except UnsupportedGraphError as exc:
            if not x.spare:
                raise
            missing.append(f"{x.name}: {exc}")
        load_ms[x.name] = (time.perf_counter() - start) * 1e3
    return opened, load_ms, missing


def widths_cost(even: tuple[Contender, float] | None, comparisons: Sequence[Comparison]) -> str:
    """What the widths off the fast path take, beside what they compute.

    A share of time stands with its interval, and not at all where blocks were too few for one.
    """
    found = [] if even is None else [x for x in comparisons if x.against == even[0].name]
    if even is None or not found:
        return ""
    shares = [
        f"{1 / x.ratio:.2f} ({1 / x.high:.2f} … {1 / x.low:.2f}) of its time at batch {x.batch}"
        for x in found
        if x.low is not None and x.high is not None
    ]
    told = f"take {', '.join(shares)} (measured)" if shares else "was timed too briefly to compare"
    return (
        f"{found[0].session} cut down to the multiples below would do {even[1]:.2f} of its "
        f"multiplications and {told}"
    )

"""What `prunion bench` times: a bundle's own sessions, each opened when it is asked for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from prunion.runtime.backends import Session, SessionOptions, check_backend, run
from prunion.runtime.base import Backend, Precision
from prunion.runtime.bundle import Bundle, Pack, open_bundle
from prunion.runtime.graph import GraphForm
from prunion.runtime.model import SessionPool, open_pool

__all__ = ["Contender", "Opened", "Setup", "contenders", "domain_rows", "session_calls"]


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
    """

    call: Callable[[int], Callable[[], object]]
    provider: str
    file_bytes: int = 0


@dataclass(frozen=True)
class Contender:
    """One thing that is timed.

    Attributes:
        open: loads it. A fault of the bundle or the backend is raised here.
        one_domain: whether it answers images of one domain only.
        one_each: whether it takes a batch apart by domain, so that it matters which there are.
    """

    name: str
    open: Callable[[], Opened]
    one_domain: bool = False
    one_each: bool = False


def contenders(setup: Setup, bundle: Bundle | None = None) -> list[Contender]:
    """The mixed session and a pinned one; `single` of a specialised bundle, which has no other.

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

    if form.single:
        return [Contender("single", mixed, one_domain=True)]
    if pool.apart:
        split = partial(_split_by_domain, pool, bundle, rows)
        found = [Contender("split", split, one_each=True)]
    else:
        found = [Contender("mixed", mixed)]
    if pool.pins:
        pack = bundle.pack(bundle.domains[rows[0]])
        found.append(Contender(f"pinned:{pack.name}", partial(pinned, pack), one_domain=True))
    return found


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

    return Opened(call, str(session.get_providers()[0]))


def domain_rows(bundle: Bundle, domains: str) -> list[int]:
    """The rows that batches go round. Raises DomainError."""
    if domains == "mixed" and "mixed" not in bundle.domains:
        return list(range(len(bundle.domains)))
    bundle.domain(domains)
    return [bundle.domains.index(domains)]

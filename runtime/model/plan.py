"""Which sessions answer a batch: measured once per model and machine, then remembered.

A mixed batch can go to the mixed session, which may run in ONNX Runtime's blocked layout, or be
split by domain and go to pinned (single-domain) ones; one of a single domain can go to either.
Which is faster depends on the machine, so each kind is timed at a few batch sizes.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.backends import Session, blocked_parts, run
from prunion.runtime.base import (
    Backend,
    SessionKind,
    Timing,
    cache_folder,
    is_number,
    machine_facts,
    read_json,
    time_interleaved,
    write_json,
)
from prunion.runtime.bundle import Pack
from prunion.runtime.errors import PrunionError
from prunion.runtime.model.layout import open_blocked
from prunion.runtime.model.pinned import Pinned
from prunion.runtime.model.pool import SessionPool

__all__ = ["BATCHES", "Plan", "find_plan", "load_plan", "measure_plan", "plan_key", "save_plan"]

FORMAT_VERSION = 2
BATCHES = (1, 2, 8)
SECONDS = 0.1  # for each kind of session and batch size
LONGER = 2.5  # times as long for the largest batch
MOST_SPREAD = 1.5  # more is other load
KINDS = ("mixed", "pinned", "sliced", "plain")
WORTH = 0.97  # of the time of the mixed graph as it is: what another way must stay under
Times = Mapping[int, float]


@dataclass(frozen=True)
class Plan:
    """Milliseconds of each kind of session by batch size; empty where it was not measured.

    Attributes:
        mixed: of the mixed session in use, `plain` of the graph as exported where that is another
            one, in the blocked layout.
        spread: time of the parts of a split batch over the times that their sessions take alone,
            one after the other: caches hold the weights of the session before.
        layout: why the blocked layout is not used, if it is not.
        reason: why no batch is split, or nothing was measured.
    """

    mixed: Times = field(default_factory=dict)
    pinned: Times = field(default_factory=dict)
    sliced: Times = field(default_factory=dict)
    reason: str = ""
    plain: Times = field(default_factory=dict)
    layout: str = ""
    spread: float = 1.0

    @property
    def slices(self) -> bool:
        """Whether a pinned session sliced to its domain is at least as fast as the union's."""
        return not self.sliced or sum(self.sliced.values()) <= sum(self.pinned.values())

    @property
    def single(self) -> Times:
        """The times of the kind of pinned session that is used."""
        return self.sliced if self.sliced and self.slices else self.pinned

    def splits(self, counts: Sequence[int]) -> bool:
        """Whether images of several domains, `counts` of each, are faster domain by domain."""
        if not self.mixed or not self.single:
            return False
        parts = self.spread * sum(map(self.alone, counts))
        return parts < WORTH * self.together(sum(counts))

    def joins(self, count: int) -> bool:
        """Whether the mixed session answers `count` images of one domain faster than its own.

        It does where its layout is in blocks and a pinned one's widths are no multiples of them.
        """
        return 0 < self.together(count) < WORTH * self.alone(count)

    def alone(self, count: int) -> float:
        """Milliseconds of `count` images of one domain by its pinned session; 0 if not measured."""
        return _time(self.single, count) if self.single else 0.0

    def together(self, count: int) -> float:
        """Milliseconds of a mixed batch of `count` that is not split; 0 if none was measured."""
        if not self.mixed:
            return 0.0
        parts = blocked_parts(count) if self.plain else [count]
        return sum(_time(self.mixed, part) for part in parts)

    def to_json(self) -> dict[str, Any]:
        """A JSON value."""
        return {"format_version": FORMAT_VERSION, **asdict(self)}


def find_plan(pool: SessionPool, packs: Sequence[Pack]) -> Plan:
    """The plan for this graph and machine, measured with the domains `packs` if none is known.

    Where the plan has the blocked layout, `pool` has it from now on.
    """
    if pool.form.single:
        return Plan(reason="the bundle holds one domain")
    if pool.apart:
        return Plan(reason="each domain has weights of its own")
    if not pool.pins:
        return Plan(reason=f"{pool.options.backend} takes new domains without a new engine")
    reason = ""
    if pool.limit < pool.typical:
        reason = (
            f"the memory limit of {pool.limit:,} bytes holds no pinned session of {pool.typical:,}"
        )
    if reason and pool.options.backend != "cpu":
        return Plan(reason=reason)
    backend = pool.backend()
    if backend == "cuda":
        return Plan(reason="CUDA plans its convolutions anew for every other number of images")
    digest = f"{pool.graph.sha256}{pool.slicing}{bool(reason)}"
    key = plan_key(digest, backend, pool.options.threads)
    known = load_plan(key)
    if known is not None:
        return _adopted(pool, packs, replace(known, reason=reason))
    plan = replace(_measure(pool, packs, alone=not reason), reason=reason)
    save_plan(key, plan)
    return plan


def _adopted(pool: SessionPool, packs: Sequence[Pack], plan: Plan) -> Plan:
    """A remembered plan, whose blocked layout is held to the plain graph once more."""
    if not plan.plain:
        return plan
    blocked = open_blocked(pool, packs)
    if isinstance(blocked, str):
        return replace(plan, mixed=plan.plain, plain={}, layout=blocked)
    pool.adopt(blocked)
    return plan


def _measure(pool: SessionPool, packs: Sequence[Pack], alone: bool) -> Plan:
    mixed, form, blocked = pool.mixed(), pool.form, open_blocked(pool, packs)
    # The row does not matter to the time: row 0 stands for all.
    tables = form.tables(packs[:1])
    cases: dict[SessionKind, Callable[[np.ndarray], object]] = {
        "mixed": _asked(mixed, pool, tables)
    }
    if not isinstance(blocked, str):
        cases["blocked"] = _asked(blocked, pool, tables)
    if alone:
        made = pool.make(packs[0], sliced=False)
        cases["pinned"] = made.run
        if pool.slicing:
            sliced = pool.make(packs[0], sliced=True)
            if sliced.sliced:
                made, cases["sliced"] = sliced, sliced.run
        if len(packs) > 1:
            cases["split"] = _split(pool, [made, pool.make(packs[1], sliced=made.sliced)])
    plan = measure_plan(cases, form.noise, SECONDS)
    if isinstance(blocked, str):
        return replace(plan, layout=blocked)
    if plan.plain:
        pool.adopt(blocked)
    return plan


def _split(pool: SessionPool, sessions: Sequence[Pinned]) -> Callable[[np.ndarray], object]:
    """Calls that answer a batch by twos, going round the sessions, as a model splits it."""
    turns = itertools.cycle(sessions)

    def call(x: np.ndarray) -> object:
        logits = []
        for start in range(0, len(x), 2):
            part = x[start : start + 2].copy()
            pool.form.check_values(part)
            logits.append(next(turns).run(part))
        return logits

    return call


def _asked(
    session: Session, pool: SessionPool, tables: dict[str, np.ndarray]
) -> Callable[[np.ndarray], object]:
    fed = tables if session.needs_tables else None
    return lambda x: run(session, pool.form.feeds(x, np.zeros(len(x), np.int64), fed))


def measure_plan(
    cases: Mapping[SessionKind, Callable[[np.ndarray], object]],
    images_of: Callable[[int], np.ndarray],
    seconds: float,
) -> Plan:
    """Time `mixed`, and the other kinds where given, at each of BATCHES, interleaved.

    `images_of(N)` gives the images that every case takes; `seconds` is spent for each case and
    batch size.
    """
    images, largest = {n: images_of(n) for n in BATCHES}, BATCHES[-1]

    def call(name: SessionKind, n: int) -> Callable[[], object]:
        return lambda: cases[name](images[n])

    timings: dict[str, Timing] = {}
    for n in BATCHES:
        calls = {f"{name}@{n}": call(name, n) for name in cases if name != "split"}
        # Longer calls are interrupted more often: they need more of them.
        spent = seconds * LONGER if n == largest else seconds
        if n == largest and "split" in cases:
            single: SessionKind = "sliced" if "sliced" in cases else "pinned"
            calls |= {"split": call("split", n), "alone": call(single, 2)}
        timings |= time_interleaved(calls, seconds=spent, warmup=1, block_ms=spent * 250)
    # The least time is what the machine can do; the median also holds its other load.
    found = {
        name: {n: timings[f"{name}@{n}"].min_ms for n in BATCHES}
        for name in cases
        if name != "split"
    }
    plan = Plan(found["mixed"], found.get("pinned", {}), found.get("sliced", {}))
    if "split" in cases:
        parts = timings["split"].min_ms / (timings["alone"].min_ms * largest / 2)
        plan = replace(plan, spread=min(max(parts, 1.0), MOST_SPREAD))
    blocked = found.get("blocked")
    if blocked is None:
        return plan
    # One image alone is a batch of one domain, which a pinned session may answer.
    ours, theirs = (sum(times[n] for n in BATCHES[1:]) for times in (blocked, plan.mixed))
    if ours < WORTH * theirs:
        return replace(plan, mixed=blocked, plain=plan.mixed)
    return replace(plan, layout=f"it takes {ours / theirs:.2f} of the plain graph's time")


def plan_key(graph_sha256: str, backend: Backend, threads: int | None) -> str:
    """Hex name of the plan for this graph on this machine with these libraries."""
    facts = {
        k: v for k, v in machine_facts(threads).items() if k not in ("load_average", "prunion")
    }
    value = [FORMAT_VERSION, graph_sha256, backend, facts, platform.node()]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def load_plan(key: str) -> Plan | None:
    """A remembered plan, None if there is none or it is damaged."""
    try:
        value = read_json(_place(key))
        if value.pop("format_version") != FORMAT_VERSION:
            return None
        kinds = {k: {int(n): t for n, t in value[k].items()} for k in KINDS}
        layout, spread = str(value["layout"]), value["spread"]
    except (PrunionError, OSError, AttributeError, KeyError, TypeError, ValueError):
        return None
    if not (is_number(spread) and spread >= 1):
        return None
    for times in kinds.values():
        if set(times) not in (set(), set(BATCHES)):
            return None
        if not all(is_number(ms) and ms > 0 for ms in times.values()):
            return None
    return Plan(
        kinds["mixed"],
        kinds["pinned"],
        kinds["sliced"],
        plain=kinds["plain"],
        layout=layout,
        spread=float(spread),
    )


def save_plan(key: str, plan: Plan) -> None:
    """Remember a plan; a folder that cannot be written only costs measuring again."""
    try:
        write_json(_place(key), plan.to_json())
    except OSError:
        return


def _place(key: str) -> Path:
    return cache_folder() / "plans" / f"{key}.json"


def _time(times: Times, count: int) -> float:
    """Milliseconds for a batch of `count`, straight lines between what was measured."""
    # Plain Python: every mixed batch asks, and numpy takes ten times as long for three numbers.
    low, high = next((x for x in pairwise(BATCHES) if count <= x[1]), BATCHES[-2:])
    slope = (times[high] - times[low]) / (high - low)
    return times[low] + (max(slope, 0.0) if count > high else slope) * (count - low)

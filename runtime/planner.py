"""From a bundle and its sessions to a plan: remembered, or measured now."""

from __future__ import annotations

import numpy as np

from prunion.runtime.backends import run
from prunion.runtime.bundle import Bundle
from prunion.runtime.pack import Pack
from prunion.runtime.plan import Plan, load_plan, measure_plan, plan_key, save_plan
from prunion.runtime.sessions import SessionPool

__all__ = ["find_plan"]

SECONDS = 0.1  # for each kind of session and batch size


def find_plan(bundle: Bundle, pool: SessionPool, pack: Pack, seconds: float = SECONDS) -> Plan:
    """The plan for this graph and machine, measured with the domain `pack` if none is known."""
    if pool.form.single:
        return Plan(reason="the bundle holds one domain")
    if not pool.pins:
        return Plan(reason=f"{pool.options.backend} takes new domains without a new engine")
    if pool.limit < pool.typical:
        return Plan(
            reason=f"the memory limit of {pool.limit:,} bytes holds no pinned session of "
            f"{pool.typical:,}"
        )
    backend = pool.backend()
    if backend == "cuda":
        return Plan(reason="CUDA plans its convolutions anew for every other number of images")
    graph = pool.graph.relative_to(bundle.path).as_posix()
    digest = f"{bundle.manifest.files[graph]}{pool.slicing}"
    key = plan_key(digest, backend, pool.options.threads)
    known = load_plan(key)
    if known is not None:
        return known
    plan = _measure(pool, pack, seconds)
    save_plan(key, plan)
    return plan


def _measure(pool: SessionPool, pack: Pack, seconds: float) -> Plan:
    mixed, plain = pool.mixed(), pool.make(pack, sliced=False)
    form = pool.form
    tables = form.tables([pack]) if getattr(mixed, "needs_tables", False) else {}
    # The row does not matter to the time: row 0 stands for all.
    cases = {
        "mixed": lambda x: run(mixed, form.feeds(x, np.zeros(len(x), np.int64), tables)),
        "pinned": plain.run,
    }
    if pool.slicing:
        sliced = pool.make(pack, sliced=True)
        if sliced.sliced:
            cases["sliced"] = sliced.run
    return measure_plan(cases, form.noise, seconds)

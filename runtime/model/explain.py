"""What a loaded model does on this machine, told for people and for programs."""

from __future__ import annotations

from dataclasses import dataclass

from prunion.runtime.base import Backend
from prunion.runtime.bundle import Bundle
from prunion.runtime.model.domains import Tables
from prunion.runtime.model.plan import BATCHES, Plan
from prunion.runtime.model.pool import SessionPool

__all__ = ["Explanation", "explain_model"]


@dataclass(frozen=True)
class Explanation:
    """Facts about one model; `str()` gives them as lines.

    Attributes:
        backend: the backend asked for; `provider` is what answers ("" before the first session).
        plan: what was measured, None before the first mixed batch or `tune()`.
        sessions: what each pinned (single-domain) session is, by domain.
        pinned_bytes: sizes of the pinned graphs together, of `limit_bytes`.
        engine: whether a TensorRT engine keeps to the precision asked for; "" without one.
        full: why the GPU took no further pinned session; "" while it does.
    """

    model: str
    backend: Backend
    provider: str
    domains: tuple[str, ...]
    plan: Plan | None
    splits: bool
    sessions: dict[str, str]
    pinned_bytes: int
    limit_bytes: int
    engine: str = ""
    full: str = ""

    def __str__(self) -> str:
        provider = self.provider or "no session yet"
        lines = [f"{self.model}: {len(self.domains)} domains, {self.backend} ({provider})"]
        lines += [f"engine: {self.engine}"] if self.engine else []
        lines += _plan_lines(self.plan, self.splits)
        used, limit = self.pinned_bytes / 2**20, self.limit_bytes / 2**20
        lines.append(f"pinned sessions: {len(self.sessions)}, {used:.1f} of {limit:.0f} MiB")
        lines += [f"  {name}: {note}" for name, note in self.sessions.items()]
        lines += [f"  no more of them, the others run mixed: {self.full}"] if self.full else []
        return "\n".join(lines)


def explain_model(
    bundle: Bundle, pool: SessionPool, tables: Tables, plan: Plan | None
) -> Explanation:
    """Look at a model without making any session."""
    names = {domain.serial: domain.name for domain in tables.domains}
    resident = pool.resident()
    count = min(4, len(tables.domains))
    counts = [8 // count] * count if count > 1 else []
    return Explanation(
        model=bundle.manifest.name,
        backend=pool.options.backend,
        provider=pool.provider(),
        domains=tables.names,
        plan=plan,
        splits=pool.apart or bool(plan and counts and plan.splits(counts)),
        sessions={names[k]: p.note for k, p in resident.items() if k in names},
        pinned_bytes=sum(p.bytes for p in resident.values()),
        limit_bytes=pool.limit,
        engine=pool.note(),
        full=pool.full,
    )


def _plan_lines(plan: Plan | None, splits: bool) -> list[str]:
    if splits and not (plan and plan.mixed):
        return ["mixed batches: split by domain, each has weights of its own"]
    if plan is None:
        return ["mixed batches: not measured yet (the first mixed batch or tune() does it)"]
    if not plan.mixed:
        return [f"mixed batches: run mixed, {plan.reason}"]
    layout = f"not in ONNX Runtime's blocked layout: {plan.layout}"
    if plan.plain:
        layout = "in ONNX Runtime's blocked layout"
    lines = []
    kinds = {"mixed": plan.mixed, "plain": plan.plain}
    kinds |= {"pinned": plan.pinned, "sliced": plan.sliced}
    for name, times in kinds.items():
        if times:
            shown = ", ".join(f"{times[n]:.2f} ms at {n}" for n in BATCHES)
            lines.append(f"  {name:<7}{shown}")
    how = "split by domain" if splits else "run mixed"
    verdict = f"a mixed batch of 8 is {how}"
    if plan.single:
        single = "sliced to their domain" if plan.sliced and plan.slices else "not sliced"
        verdict += f"; pinned sessions are {single}"
    if any(map(plan.joins, BATCHES)):
        few = "" if plan.joins(1) else ", but one image alone,"
        verdict += f"; a batch of one domain{few} goes to the mixed session, which is faster"
    verdict += f", {plan.reason}" if plan.reason else ""
    return [f"{verdict}; measured here:", *lines, f"mixed batches that are not split run {layout}"]

"""Mixed batches in ONNX Runtime's blocked layout, where it answers as the plain graph does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prunion.runtime.backends import BlockedSession, Session, run
from prunion.runtime.base import arithmetic_of, reason_of
from prunion.runtime.bundle import Pack
from prunion.runtime.model.pool import SessionPool
from prunion.runtime.model.probing import disagreement, slice_limit

__all__ = ["open_blocked"]

MIXED = 16  # domains that the check mixes
COUNTS = (15, 3)  # images in its batches: every session has its turn
FEW = 4  # images that the plain session takes at a time: its memory grows with them, and stays


def open_blocked(pool: SessionPool, packs: Sequence[Pack]) -> BlockedSession | str:
    """A mixed session in the blocked layout that answers as `pool`'s own, else why there is none.

    It is asked for mixes of the domains `packs`, in other orders than the graph's own tables have.
    """
    precision = pool.probe.precision
    if pool.form.single or pool.apart or not pool.pins:
        return "there is no mixed graph that ONNX Runtime runs"
    if pool.backend() != "cpu" or arithmetic_of(precision) != "fp32":
        return "it is for float32 on a CPU, by ONNX Runtime"
    try:
        made = BlockedSession(pool.graph.read(), pool.chosen(), pool.make_mixed)
        bank = pool.form.tables(packs)["bank"]
        if not made.holds(len(packs), bank.nbytes // len(bank)):
            made = BlockedSession(pool.graph.read(), pool.chosen(), pool.make_mixed, fold=0.0)
        error = _error(made, pool.mixed(), pool, packs[:MIXED])
    except Exception as exc:  # an operator or a graph that does not fit is no error of the user's
        return reason_of(exc)
    if made.note():
        return made.note()
    limit = slice_limit("cpu", precision)
    return made if error <= limit else f"its answers are {error:.1e} off, over {limit:g}"


def _error(made: Session, plain: Session, pool: SessionPool, packs: Sequence[Pack]) -> float:
    """The largest disagreement over some mixes of domains."""
    worst, form = 0.0, pool.form
    for seed, count in enumerate(COUNTS):
        random = np.random.default_rng(seed)
        tables = form.tables([packs[x] for x in random.permutation(len(packs))])
        rows, image = random.integers(0, len(packs), count), form.noise(count)
        parts = [slice(start, start + FEW) for start in range(0, count, FEW)]
        expected = [run(plain, form.feeds(image[part], rows[part], tables)) for part in parts]
        got = run(made, form.feeds(image, rows, tables))
        worst = max(worst, disagreement(np.concatenate(expected), got))
    return worst

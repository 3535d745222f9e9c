"""A bundle's claim about its latency, predicted again from the widths it holds."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from prunion.runtime.bundle import Bundle
from prunion.runtime.errors import PrunionError
from prunion.runtime.profile_file import read_profile

__all__ = ["check_budget"]


def check_budget(bundle: Bundle) -> Iterator[str]:
    """The milliseconds of a latency budget by the bundle's own `profile.json`."""
    claimed = bundle.manifest.budget
    if claimed.kind != "latency":
        return
    if "profile.json" not in bundle.manifest.files:
        yield "its budget is a latency, but it holds no profile.json"
        return
    try:
        profile, table = read_profile(bundle.file("profile.json")), bundle.unit_table()
        found = profile.milliseconds(table, np.ones(table.count, dtype=bool))
    except (PrunionError, KeyError) as exc:
        yield f"its profile does not fit its unit table ({exc})"
        return
    if not np.isclose(found, claimed.milliseconds, rtol=1e-9):
        yield f"its widths cost {found:.4g} ms, the manifest says {claimed.milliseconds:.4g} ms"

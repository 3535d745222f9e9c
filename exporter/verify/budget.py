"""A bundle's claim about its budget, worked out again from the files it holds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import numpy as np

from prunion.runtime.bundle.folder import Bundle
from prunion.runtime.bundle.manifest import BudgetAccount
from prunion.runtime.bundle.profile import read_profile
from prunion.runtime.errors import ConfigError, PrunionError
from prunion.trainer.config.choices import BudgetKind
from prunion.trainer.config.run import BudgetConfig

__all__ = ["check_budget"]


def check_budget(bundle: Bundle) -> Iterator[str]:
    """What the file costs in the budget's unit, whether that is what was asked, and is met.

    Parameters and MACs are the manifest's own, which `check_graph` counts again; bytes are
    the fp32 graph's, switches the unit table's, milliseconds what its `profile.json` predicts.
    """
    claimed = bundle.manifest.budget
    try:
        profile = "profile.json" if claimed.kind == "latency" else ""
        kind = cast(BudgetKind, claimed.kind)  # which BudgetConfig checks
        config = BudgetConfig(claimed.asked, kind, profile=profile)
    except ConfigError as exc:
        yield f"its budget is no budget ({exc})"
        return
    if claimed.kind == "latency":
        yield from _check_latency(bundle, config)
    else:
        yield from _check(claimed, config, _counted(bundle))


def _counted(bundle: Bundle) -> float:
    kind, manifest = bundle.manifest.budget.kind, bundle.manifest
    if kind == "bytes":
        return bundle.graph("fp32").stat().st_size
    if kind == "switches":
        return bundle.unit_table().count
    return getattr(manifest, kind)["exported"]


def _check_latency(bundle: Bundle, config: BudgetConfig) -> Iterator[str]:
    claimed = bundle.manifest.budget
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
        return
    yield from _check(claimed, config, found)


def _check(claimed: BudgetAccount, config: BudgetConfig, found: float) -> Iterator[str]:
    if config.is_fraction and not claimed.backbone:
        return  # a bundle from before `backbone` was told: a share of what is not known
    value = min(1.0, found / claimed.backbone) if config.is_fraction else found
    if not np.isclose(value, claimed.value, rtol=1e-9):
        yield f"its {claimed.kind} are {value:.6g}, the manifest's budget says {claimed.value:.6g}"
    whole = config.is_fraction and config.amount == 1
    if (whole or found <= config.allowed(claimed.backbone)) != claimed.met:
        yield (
            f"its {claimed.kind} are {value:.6g} of {claimed.asked} asked, but the manifest says "
            f"the budget is {'' if claimed.met else 'not '}met"
        )

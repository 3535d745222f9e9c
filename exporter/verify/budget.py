"""Whether what a bundle's file costs keeps the budget as its manifest says."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import cast

import numpy as np
import onnx

from prunion.exporter.counts import initializers, recount
from prunion.runtime.base import one_line, shown
from prunion.runtime.bundle import BudgetAccount, Bundle, read_profile
from prunion.runtime.errors import ConfigError, PrunionError
from prunion.trainer.config import BudgetConfig, BudgetKind

__all__ = ["check_budget"]


def check_budget(bundle: Bundle) -> Iterator[str]:
    """What the file costs in the budget's unit, whether that is what was asked, and is met.

    Parameters and MACs are the manifest's own, which `check_graph` counts again, or the slices that
    are stored; bytes are the fp32 graph's, switches the unit table's, milliseconds what its
    `profile.json` predicts.
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
    elif claimed.slices:
        yield from _check_slices(bundle, config)
    else:
        yield from _check(claimed, config, _counted(bundle))


def _counted(bundle: Bundle) -> float:
    kind, manifest = bundle.manifest.budget.kind, bundle.manifest
    if kind == "bytes":
        return bundle.held_graph("fp32").size
    if kind == "switches":
        return bundle.unit_table().count
    counts: Mapping[str, float] = getattr(manifest, kind)
    return counts["exported"] + counts.get("adapters", 0)


def _check_slices(bundle: Bundle, config: BudgetConfig) -> Iterator[str]:
    claimed, manifest = bundle.manifest.budget, bundle.manifest
    train = manifest.provenance.config.get("train") if manifest.provenance else None
    if (
        claimed.kind != "params"
        or not isinstance(train, dict)
        or train.get("granularity") != "slice"
    ):
        yield "its budget is said to be of slices, which no domain of it chose"
        return
    try:
        found = _slices_in_use(bundle)
    except Exception as exc:  # a damaged file makes onnx and numpy raise anything
        yield f"its slices cannot be counted ({one_line(exc)})"
        return
    if not bundle.manifest.packed:  # a slice in use may be all zero there, so more may be claimed
        stated = claimed.value * (claimed.backbone if config.is_fraction else 1)
        found = min(max(found, round(stated)), round(manifest.params["exported"]))
    yield from _check(claimed, config, found)


def _slices_in_use(bundle: Bundle) -> int:
    """Weights of the k×k slices that are stored, or of an ordinary graph those not all zero.

    A layer whose weights are a constant of the network has no slices, and counts whole.
    """
    packed = {
        key.removeprefix("packed:"): values
        for key, values in bundle.shared_parts().items()
        if key.startswith("packed:")
    }
    model = onnx.load_from_string(bundle.held_graph("fp32").read())
    values, total = initializers(model), 0
    for name, shape in recount(model).shapes.items():
        if name in packed:
            total += packed[name].size
        elif bundle.manifest.packed:
            total += math.prod(shape)
        else:
            slices = values[name].reshape(*shape[:2], -1)
            total += int(slices.any(-1).sum()) * slices.shape[-1]
    return total


def _check_latency(bundle: Bundle, config: BudgetConfig) -> Iterator[str]:
    claimed = bundle.manifest.budget
    if "profile.json" not in bundle.manifest.files:
        yield "its budget is a latency, but it holds no profile.json"
        return
    try:
        profile, table = read_profile(bundle.file("profile.json")), bundle.unit_table()
        found = profile.milliseconds(table, np.ones(table.count, dtype=bool))
    except (PrunionError, KeyError) as exc:
        yield f"its profile does not fit its unit table ({one_line(exc)})"
        return
    if not np.isclose(found, claimed.milliseconds, rtol=1e-9):
        yield f"its widths cost {found:.4g} ms, the manifest says {claimed.milliseconds:.4g} ms"
        return
    if profile.describe() != claimed.device:
        yield f"its profile is of {profile.describe()}, the manifest says {shown(claimed.device)}"
    yield from _check(claimed, config, found)


def _check(claimed: BudgetAccount, config: BudgetConfig, found: float) -> Iterator[str]:
    if config.is_fraction and not claimed.backbone:
        return  # a bundle from before `backbone` was told: a share of what is not known
    value = found / claimed.backbone if config.is_fraction else found
    if config.is_fraction and (claimed.kind == "bytes" or claimed.value == 1):
        value = min(1.0, value)  # an earlier prunion told of no more than all of it
    if not np.isclose(value, claimed.value, rtol=1e-9):
        yield f"its {claimed.kind} are {value:.6g}, the manifest's budget says {claimed.value:.6g}"
    whole = config.is_fraction and config.amount == 1
    if (whole or found <= config.allowed(claimed.backbone)) != claimed.met:
        yield (
            f"its {claimed.kind} are {value:.6g} of {claimed.asked} asked, but the manifest says "
            f"the budget is {'' if claimed.met else 'not '}met"
        )

"""An INT8 graph's accuracy measured again, where the checkpoint's images are still there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prunion.exporter.graph.int8 import graph_accuracy
from prunion.runtime.bundle.folder import Bundle
from prunion.runtime.errors import PrunionError
from prunion.trainer.data.domains import open_domain
from prunion.trainer.network.checkpoint import Checkpoint

__all__ = ["measure_int8_again"]


def measure_int8_again(
    bundle: Bundle, graphs: list[str], loaded: Checkpoint | None
) -> tuple[list[str], list[str]]:
    """(problems, notes) of the bundle's `int8` graph, held to the loss that its export allowed.

    A note says what was measured, or in one line why nothing could be.
    """
    noted = _noted(bundle)
    if "int8" not in graphs or not noted:
        return [], []
    if loaded is None:
        return [], ["int8: accuracy not measured again: give --against CHECKPOINT"]
    config = loaded.config
    known = {domain.name: domain for domain in config.domains}
    try:
        domains = [open_domain(known[name], config.seed) for name in bundle.domains]
        found = graph_accuracy(Path(bundle.graph("int8")), domains, loaded)
    except (PrunionError, OSError, KeyError) as exc:
        reason = " ".join(str(exc).split())
        return [], [f"int8: accuracy not measured again, the run's images are not there: {reason}"]
    problems, notes = [], []
    limit = float(noted["max_drop"])
    for name, accuracy in found.items():
        before, after = noted["accuracy"][name]
        notes.append(f"int8: {name} {accuracy:.1%} measured again, {after:.1%} at export")
        if 100 * (before - accuracy) > limit + 1e-9:
            problems.append(
                f"int8 graph, domain {name}: accuracy {accuracy:.1%}, fp32 had {before:.1%} at "
                f"export, which allowed a loss of {limit:g} points: export the bundle again"
            )
    return problems, notes


def _noted(bundle: Bundle) -> Mapping[str, Any]:
    """`verified.variants.int8` if it has what an export writes, else nothing."""
    value: Any = bundle.manifest.raw
    for key in ("verified", "variants", "int8"):
        value = value.get(key) if isinstance(value, Mapping) else None
    if not isinstance(value, Mapping) or not isinstance(value.get("max_drop"), int | float):
        return {}
    accuracy = value.get("accuracy")
    complete = isinstance(accuracy, Mapping) and all(
        isinstance(accuracy.get(name), list) and len(accuracy[name]) == 2 for name in bundle.domains
    )
    return value if complete else {}

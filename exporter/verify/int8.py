"""An INT8 graph's accuracy measured again, where the checkpoint's images are still there."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from prunion.exporter.graph.int8 import graph_accuracy, lost
from prunion.runtime.bundle.folder import Bundle
from prunion.runtime.errors import PrunionError
from prunion.trainer.data.domains import open_domain
from prunion.trainer.network.checkpoint import Checkpoint

__all__ = ["measure_int8_again"]


def measure_int8_again(
    bundle: Bundle, graphs: Collection[str], loaded: Checkpoint | None
) -> tuple[list[str], list[str]]:
    """(problems, notes) of the bundle's `int8` graph, held to the loss that its export allowed.

    A note says what was measured, or in one line why nothing could be.

    Args:
        graphs: those that ONNX Runtime runs.
    """
    verified = bundle.manifest.verified
    check = None if verified is None else verified.variants.get("int8")
    noted = None if check is None else check.int8
    if "int8" not in graphs:
        return [], []
    if noted is None:
        return [], ["int8: accuracy not measured again: its export noted none"]
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
    unnoted = [name for name in found if name not in noted.accuracy]
    if unnoted:
        return [f"int8 graph, domain {unnoted[0]}: its export noted no accuracy"], []
    before = {name: noted.accuracy[name][0] for name in found}
    notes = [
        f"int8: {name} {accuracy:.1%} measured again, {noted.accuracy[name][1]:.1%} at export"
        for name, accuracy in found.items()
    ]
    problems = [
        f"int8 graph, domain {name}: accuracy {found[name]:.1%}, fp32 had {before[name]:.1%} at "
        f"export, which allowed a loss of {noted.max_drop:g} points: export the bundle again"
        for name in lost(before, found, noted.max_drop)
    ]
    return problems, notes

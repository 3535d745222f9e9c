"""The INT8 graph made and measured again, where a run's images are there."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
import onnx

from prunion.exporter.graph import (
    calibration_batches,
    graph_accuracy,
    lost,
    open_trained,
    other_parts,
    quantised,
)
from prunion.exporter.verify.variants import first_few, tensors_of
from prunion.runtime.base import PRECISIONS, one_line, reason_of, shown
from prunion.runtime.bundle import Bundle, Int8Account
from prunion.runtime.errors import PrunionError
from prunion.trainer.network import Checkpoint

__all__ = ["measure_int8_again"]

# By how much an accuracy may be another on another machine, whose sums round otherwise; or by an
# image. Eight bits also saturate on some processors.
DRIFT = {"fp32": 0.001, "int8": 0.01}
STEP_DRIFT = 0.01  # of a step, which is a largest value's share


def measure_int8_again(
    bundle: Bundle, graphs: Collection[str], loaded: Checkpoint | None
) -> tuple[list[str], list[str]]:
    """(problems, notes) of the bundle's `int8` graph, held to the loss that its export allowed.

    The loss is against the fp32 graph on the same images; what the export noted of both must be
    what is measured, and its steps those of the images that it was calibrated with.
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
        return [], ["int8: accuracy and activations not measured again: give --against CHECKPOINT"]
    pair = [graph for graph in ("fp32", "int8") if graph in graphs]
    try:
        domains = open_trained(loaded, bundle.domains)
        accuracy = [
            graph_accuracy(bundle.held_graph(PRECISIONS[graph]).read(), domains, loaded)
            for graph in pair
        ]
        batches = calibration_batches(domains, loaded, noted.calibration_images)
    except (PrunionError, OSError, KeyError) as exc:
        reason = one_line(exc)
        return [], [f"int8: accuracy not measured again, the run's images are not there: {reason}"]
    found, counts = accuracy[-1], {domain.name: len(domain.test) for domain in domains}
    for told, what in ((noted.accuracy, "accuracy"), (noted.test_images, "number of images")):
        if unlike := sorted({*told} ^ {*found}):
            noticed = "no" if unlike[0] in found else "an"
            return [f"int8 graph, domain {unlike[0]}: its export noted {noticed} {what}"], []
    before = accuracy[0] if "fp32" in pair else {x: noted.accuracy[x][0] for x in found}
    notes = [
        f"int8: {name} {value:.1%} measured again, {noted.accuracy[name][1]:.1%} at export"
        for name, value in found.items()
    ]
    problems = [
        f"int8 graph, domain {name}: accuracy {found[name]:.1%}, fp32 has {before[name]:.1%}, and "
        f"its export allowed a loss of {noted.max_drop:g} points: export the bundle again"
        for name in lost(before, found, noted.max_drop)
    ]
    problems += [
        f"int8 graph, domain {name}: its export noted {noted.test_images[name]:,} test images, "
        f"the run has {count:,}"
        for name, count in counts.items()
        if noted.test_images[name] != count
    ]
    for place, (graph, measured) in enumerate(zip(("fp32", "int8"), (before, found), strict=True)):
        for name, value in measured.items():
            said = noted.accuracy[name][place]
            if not abs(said - value) <= max(DRIFT[graph], 1 / counts[name]) + 1e-9:
                problems.append(
                    f"int8 graph, domain {name}: its export noted an accuracy of {said:.1%} in "
                    f"{graph}, measured again it is {value:.1%}"
                )
    others = [domain.name for domain in domains if "training" in other_parts(domain, loaded)]
    if others:
        notes.append(
            f"int8: activations not measured again: [domains.{others[0]}] has other training "
            "images than when the run read them"
        )
    elif "fp32" in pair:
        try:
            found_again = first_few(_check_steps(bundle, noted, batches))
            problems += [f"int8 graph: {problem}" for problem in found_again]
        except Exception as exc:  # of the quantiser's, or of a disk: the rest was measured
            problems.append(f"int8 graph: its steps could not be found again ({reason_of(exc)})")
    return problems, notes


def _check_steps(
    bundle: Bundle, noted: Int8Account, batches: list[dict[str, np.ndarray]]
) -> Iterator[str]:
    """What INT8 rounds activations to, from the images that it was calibrated with."""
    if noted.outputs not in ("int8", "float32"):
        yield f"its export noted outputs of {shown(noted.outputs)}, which are none"
        return
    made = quantised(bundle.held_graph("fp32").read(), batches, noted.outputs)
    wanted = _steps(tensors_of(made))
    held = _steps(tensors_of(onnx.load_from_string(bundle.held_graph("int8").read())))
    if unlike := sorted(wanted.keys() ^ held.keys()):
        yield f"it rounds other values than calibrating again does, such as {unlike[0]}"
    for name in sorted(wanted.keys() & held.keys()):
        same = wanted[name].shape == held[name].shape
        if not (same and np.allclose(held[name], wanted[name], rtol=STEP_DRIFT, atol=0)):
            yield f"its {name} is not what {noted.calibration_images:,} images give"


def _steps(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {n: x for n, x in tensors.items() if n.endswith("_scale") or n == "bank_ranges"}

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
from prunion.exporter.verify.findings import Findings
from prunion.exporter.verify.variants import first_few, tensors_of
from prunion.runtime.base import PRECISIONS, one_line, reason_of, shown
from prunion.runtime.bundle import Bundle, Int8Account
from prunion.runtime.errors import PrunionError
from prunion.trainer.network import Checkpoint

__all__ = ["measure_int8_again"]

GRAPHS = ("fp32", "int8")  # in the order in which the export noted their accuracy

# By how much an accuracy may be another on another machine, whose sums round otherwise; or by an
# image. Eight bits also saturate on some processors.
DRIFT = {"fp32": 0.001, "int8": 0.01}
STEP_DRIFT = 0.01  # of a step, which is a largest value's share


def measure_int8_again(
    bundle: Bundle, graphs: Collection[str], loaded: Checkpoint | None
) -> Findings:
    """The bundle's `int8` graph, held to the loss that its export allowed.

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
        return Findings()
    if noted is None:
        return Findings(notes=["int8: accuracy not measured again: its export noted none"])
    if loaded is None:
        note = "int8: accuracy and activations not measured again: give --against CHECKPOINT"
        return Findings(notes=[note])
    try:
        domains = open_trained(loaded, bundle.domains)
        accuracy = {
            graph: graph_accuracy(bundle.held_graph(PRECISIONS[graph]).read(), domains, loaded)
            for graph in GRAPHS
            if graph in graphs
        }
        batches = calibration_batches(domains, loaded, noted.calibration_images)
    except (PrunionError, OSError, KeyError) as exc:
        note = "int8: accuracy not measured again, the run's images are not there: "
        return Findings(notes=[note + one_line(exc)])
    for told, what in ((noted.accuracy, "accuracy"), (noted.test_images, "number of images")):
        if unlike := sorted({*told} ^ {*accuracy["int8"]}):
            noticed = "no" if unlike[0] in accuracy["int8"] else "an"
            problem = f"int8 graph, domain {unlike[0]}: its export noted {noticed} {what}"
            return Findings(problems=[problem])
    found = _hold_accuracy(noted, accuracy, {domain.name: len(domain.test) for domain in domains})
    others = [domain.name for domain in domains if "training" in other_parts(domain, loaded)]
    if others:
        found.notes.append(
            f"int8: activations not measured again: [domains.{others[0]}] has other training "
            "images than when the run read them"
        )
    elif "fp32" in accuracy:
        found.problems.extend(_hold_steps(bundle, noted, batches))
    return found


def _hold_accuracy(
    noted: Int8Account, accuracy: Mapping[str, Mapping[str, float]], counts: Mapping[str, int]
) -> Findings:
    """What the export noted and allowed, against the accuracy of each graph on `counts` images."""
    after = accuracy["int8"]
    before = accuracy.get("fp32", {name: noted.accuracy[name][0] for name in after})
    notes = [
        f"int8: {name} {value:.1%} measured again, {noted.accuracy[name][1]:.1%} at export"
        for name, value in after.items()
    ]
    problems = [
        f"int8 graph, domain {name}: accuracy {after[name]:.1%}, fp32 has {before[name]:.1%}, and "
        f"its export allowed a loss of {noted.max_drop:g} points: export the bundle again"
        for name in lost(before, after, noted.max_drop)
    ]
    problems += [
        f"int8 graph, domain {name}: its export noted {noted.test_images[name]:,} test images, "
        f"the run has {count:,}"
        for name, count in counts.items()
        if noted.test_images[name] != count
    ]
    for place, (graph, measured) in enumerate(zip(GRAPHS, (before, after), strict=True)):
        for name, value in measured.items():
            said = noted.accuracy[name][place]
            if not abs(said - value) <= max(DRIFT[graph], 1 / counts[name]) + 1e-9:
                problems.append(
                    f"int8 graph, domain {name}: its export noted an accuracy of {said:.1%} in "
                    f"{graph}, measured again it is {value:.1%}"
                )
    return Findings(problems=problems, notes=notes)


def _hold_steps(
    bundle: Bundle, noted: Int8Account, batches: list[dict[str, np.ndarray]]
) -> list[str]:
    """Problems of what INT8 rounds activations to, on the images that it was calibrated with."""
    try:
        problems = first_few(_check_steps(bundle, noted, batches))
        return [f"int8 graph: {problem}" for problem in problems]
    except Exception as exc:  # of the quantiser's, or of a disk: the rest was measured
        return [f"int8 graph: its steps could not be found again ({reason_of(exc)})"]


def _check_steps(
    bundle: Bundle, noted: Int8Account, batches: list[dict[str, np.ndarray]]
) -> Iterator[str]:
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

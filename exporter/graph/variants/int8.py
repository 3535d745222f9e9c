"""INT8 by ONNX Runtime's quantiser: a QDQ graph calibrated on images of every domain.

Only the trunk's convolutions are quantised; the per-domain products and sums and the heads stay
float32, so the tables stay what they are in every other graph. Their outputs become eight bits too
where the accuracy bears it; where it does not they stay float32.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from prunion.exporter.graph.build import errors_only
from prunion.exporter.graph.probe import open_graph
from prunion.exporter.graph.variants.int8_ranges import equalise
from prunion.exporter.options import ExportOptions
from prunion.runtime.base import shown
from prunion.runtime.bundle import Int8Account
from prunion.runtime.errors import DataError, VerificationError
from prunion.runtime.images import same_images
from prunion.trainer.data import Domain, eval_batches, eval_transform, open_domain
from prunion.trainer.network import Checkpoint

__all__ = [
    "calibration_batches",
    "check_names",
    "graph_accuracy",
    "int8_graph",
    "lost",
    "open_trained",
    "quantised",
    "refuse",
]

log = logging.getLogger(__name__)

BATCH = 32
Batch = dict[str, np.ndarray]
Accuracy = Mapping[str, float]
ADDED = ("scale", "zero_point", "quantized", "QuantizeLinear_Output", "DequantizeLinear_Output")


def int8_graph(
    graph: Path, loaded: Checkpoint, options: ExportOptions
) -> tuple[onnx.ModelProto, Int8Account]:
    """Quantise an fp32 graph; returns the QDQ graph and what it cost each domain.

    Raises:
        DataError: the run's images cannot be read, or are of other classes by now.
        VerificationError: a domain loses more than `options.int8_max_drop` points, or a tensor of
            the network has a name that the quantiser gives.
    """
    domains = open_trained(loaded, [domain.name for domain in loaded.config.domains])
    check_names(onnx.load(graph))
    batches = calibration_batches(domains, loaded, options.int8_images)
    before = graph_accuracy(graph, domains, loaded)
    with tempfile.TemporaryDirectory() as folder:
        for outputs in ("int8", "float32"):
            path = Path(folder) / f"{outputs}.onnx"
            _quantise(graph, path, batches, outputs)
            after = graph_accuracy(path, domains, loaded)
            if not lost(before, after, options.int8_max_drop):
                break
        else:
            refuse(before, after, options.int8_max_drop)
        model = onnx.load(path)
    model.producer_name = "prunion"
    onnx.checker.check_model(model, full_check=True)
    return model, Int8Account(
        accuracy={name: (before[name], after[name]) for name in before},
        test_images={domain.name: len(domain.test) for domain in domains},
        max_drop=options.int8_max_drop,
        calibration_images=options.int8_images,
        outputs=outputs,
    )


def check_names(model: onnx.ModelProto) -> None:
    """Raise VerificationError where what the quantiser adds would take the place of a tensor.

    It names all that it makes of a tensor after that, and looks for none of the name.
    """
    taken = {x.name for x in model.graph.initializer}
    taken |= {name for node in model.graph.node for name in node.output}
    for conv in [node for node in model.graph.node if node.op_type == "Conv"]:
        for name in (*conv.input[:2], conv.output[0]):
            for new in [f"{name}_{ending}" for ending in ADDED]:
                if new in taken:
                    raise VerificationError(
                        f"the network has a tensor {shown(new)}, which is what ONNX Runtime's "
                        f"quantiser calls its own of {shown(name)}; nothing was written: give it "
                        "another name in the network, or leave out --int8"
                    )


def open_trained(loaded: Checkpoint, names: Sequence[str]) -> list[Domain]:
    """Some of a run's domains, as it trained them.

    Warns where their images are others by now, as far as the checkpoint has digests of them.
    Raises DataError if they cannot be read, or are of other classes.
    """
    config = loaded.config
    known = {domain.name: domain for domain in config.domains}
    entries = {entry["name"]: entry for entry in loaded.meta["domains"]}
    classes = {name: list(entry["classes"]) for name, entry in entries.items()}
    opened = [open_domain(known[n], config.seed, config.input.orientation) for n in names]
    for domain in opened:
        before, now = classes[domain.name], list(domain.classes)
        if before != now:  # a label is a place among them: every accuracy would be chance
            changed = sorted({*before} ^ {*now}) or now
            raise DataError(
                f"[domains.{domain.name}] has other classes than the network learned "
                f"({shown(changed[0])} among what changed): put its images back as they were"
            )
        if other := other_parts(domain, loaded):
            log.warning(
                "[domains.%s] has other %s images than when the run read them: INT8 is measured "
                "on what is there now, and the network may have learned from some of its test "
                "images; put the images back as they were",
                domain.name,
                " and ".join(other),
            )
    return opened


def other_parts(domain: Domain, loaded: Checkpoint) -> list[str]:
    """Which of "training" and "test" images are others than a checkpoint has digests of."""
    (entry,) = (x for x in loaded.meta["domains"] if x["name"] == domain.name)
    noted = entry.get("digests")
    noted = noted if isinstance(noted, dict) else {}
    sets = {"train": ("training", domain.train.digest), "test": ("test", domain.test.digest)}
    return [
        what for key, (what, now) in sets.items() if same_images(noted.get(key, ""), now) is False
    ]


def lost(before: Accuracy, after: Accuracy, limit: float) -> dict[str, float]:
    """Percentage points of accuracy lost by each domain that lost more than `limit` of them."""
    drops = {name: 100 * (before[name] - after[name]) for name in before}
    # Shares of images are no exact floats: 0.90 - 0.89 is a little more than one point.
    return {name: drop for name, drop in drops.items() if not drop <= limit + 1e-9}


def refuse(before: Accuracy, after: Accuracy, limit: float) -> None:
    """Raise VerificationError naming the domain that lost most, if any lost over `limit` points."""
    drops = lost(before, after, limit)
    if drops:
        name = max(drops, key=lambda x: drops[x])
        raise VerificationError(
            f"domain {name}: INT8 costs {drops[name]:.2f} points of accuracy ({before[name]:.1%} → "
            f"{after[name]:.1%}), more than {limit:g}; nothing was written: raise --int8-max-drop "
            "or leave out --int8"
        )


def calibration_batches(domains: Sequence[Domain], loaded: Checkpoint, count: int) -> list[Batch]:
    """Mixed batches of `count` training images of each domain, evenly spread over its classes."""
    transform = eval_transform(loaded.config.input)
    images, rows = [], []
    for row, domain in enumerate(domains):
        order = np.argsort(domain.train.labels, kind="stable")
        chosen = order[np.linspace(0, len(order) - 1, min(count, len(order))).astype(int)]
        for index in chosen:
            images.append(transform(domain.train.image(int(index))).numpy())
            rows.append(row)
    mixed = np.random.default_rng(0).permutation(len(rows))
    parts = np.split(mixed, range(BATCH, len(mixed), BATCH))
    return [
        {"image": np.stack([images[i] for i in part]), "domain": np.array([rows[i] for i in part])}
        for part in parts
    ]


def graph_accuracy(
    graph: Path | bytes, domains: Sequence[Domain], loaded: Checkpoint
) -> dict[str, float]:
    """Share of right answers of a graph on each domain's test images."""
    session = open_graph(graph)
    takes = {value.name for value in session.get_inputs()}
    transform, accuracy = eval_transform(loaded.config.input), {}
    for row, domain in enumerate(domains):
        right = 0
        for images, labels in eval_batches(domain.test, transform, BATCH):
            feeds = {"image": images.numpy()}
            if "domain" in takes:
                feeds["domain"] = np.full(len(labels), row, dtype=np.int64)
            logits = session.run(["logits"], feeds)[0]
            right += int((logits.argmax(1) == labels.numpy()).sum())
        accuracy[domain.name] = right / len(domain.test)
    return accuracy


def quantised(graph: bytes, batches: list[Batch], outputs: str) -> onnx.ModelProto:
    """The QDQ graph of an fp32 one; `outputs` of the convolutions are `int8` or stay `float32`."""
    with tempfile.TemporaryDirectory() as folder:
        source, path = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        source.write_bytes(graph)
        _quantise(source, path, batches, outputs)
        return onnx.load(path)


def _quantise(graph: Path, path: Path, batches: list[Batch], outputs: str) -> None:
    """Write the QDQ graph; `outputs` of the convolutions are `int8` or stay `float32`.

    INT8 outputs are what makes ONNX Runtime's CPU kernels fast; float32 ones lose less accuracy.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    source = onnx.load(graph)
    if outputs == "int8":
        equalise(source, batches)
    shapes = {v.name: v for v in (*source.graph.value_info, *source.graph.output)}
    tables = _without_tables(source)
    takes = {i.name for i in source.graph.input}
    kept: dict[str, Any] = {"OpTypesToExcludeOutputQuantization": ["Conv"]}

    class Reader(CalibrationDataReader):
        """Hands the batches out one by one, again from the start after `rewind`."""

        def __init__(self) -> None:
            self.left: Iterator[Batch] = iter(batches)

        def get_next(self) -> Batch | None:
            batch = next(self.left, None)
            return batch and {name: batch[name] for name in batch if name in takes}

        def rewind(self) -> None:
            self.left = iter(batches)

    with errors_only(""):  # the quantiser gives advice to the root logger
        quantize_static(
            source,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            extra_options={
                "ActivationSymmetric": True,  # TensorRT takes no zero points
                "WeightSymmetric": True,
                "QuantizeBias": False,
                **(kept if outputs == "float32" else {}),
            },
        )
    model = onnx.load(path)
    model.graph.input.extend(tables)
    # While the tables were constants, so was Cmax: as inputs they may be larger.
    for value in (*model.graph.value_info, *model.graph.output):
        if value.name in shapes:
            value.CopyFrom(shapes[value.name])
    onnx.save(model, path)


def _without_tables(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """Leave the inputs that have a default out of a graph, and return them.

    ONNX Runtime warns about each, in a session that the quantiser opens. How much it says can only
    be set for the whole process, and not be put back: nothing tells what it was.
    """
    names = {initializer.name for initializer in model.graph.initializer}
    tables = [value for value in model.graph.input if value.name in names]
    for table in tables:
        model.graph.input.remove(table)
    return tables

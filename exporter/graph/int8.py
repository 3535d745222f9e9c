"""INT8 by ONNX Runtime's quantiser: a QDQ graph calibrated on images of every domain.

Only the trunk's convolutions are quantised; the per-domain products and sums and the heads stay
float32, so the tables stay what they are in every other graph. Their outputs become eight bits too
where the accuracy bears it; where it does not they stay float32.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from prunion.exporter.graph.int8_ranges import equalise
from prunion.exporter.graph.probe import open_graph
from prunion.exporter.options import ExportOptions
from prunion.runtime.errors import VerificationError
from prunion.trainer.data.batches import eval_batches
from prunion.trainer.data.domains import Domain, open_domain
from prunion.trainer.data.transforms import eval_transform
from prunion.trainer.network.checkpoint import Checkpoint

__all__ = ["calibration_batches", "graph_accuracy", "int8_graph", "lost", "refuse"]

BATCH = 32
Batch = dict[str, np.ndarray]
Accuracy = Mapping[str, float]


def int8_graph(
    graph: Path, loaded: Checkpoint, options: ExportOptions
) -> tuple[onnx.ModelProto, dict[str, Any]]:
    """Quantise an fp32 graph; returns the QDQ graph and each domain's accuracy before and after.

    Raises:
        DataError: the run's images cannot be read.
        VerificationError: a domain loses more than `options.int8_max_drop` points.
    """
    config = loaded.config
    domains = [open_domain(domain, config.seed) for domain in config.domains]
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
    facts = {
        "accuracy": {name: [before[name], after[name]] for name in before},
        "test_images": {domain.name: len(domain.test) for domain in domains},
        "max_drop": options.int8_max_drop,
        "calibration_images": options.int8_images,
        "outputs": outputs,
    }
    return model, facts


def lost(before: Accuracy, after: Accuracy, limit: float) -> dict[str, float]:
    """Accuracy points lost by each domain that lost more than `limit` of them."""
    drops = {name: 100 * (before[name] - after[name]) for name in before}
    return {name: drop for name, drop in drops.items() if drop > limit + 1e-9}


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


def graph_accuracy(graph: Path, domains: Sequence[Domain], loaded: Checkpoint) -> dict[str, float]:
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


def _quantise(graph: Path, path: Path, batches: list[Batch], outputs: str) -> None:
    """Write the QDQ graph; `outputs` of the convolutions are `int8` or stay `float32`.

    INT8 outputs are what makes ONNX Runtime's CPU kernels fast; float32 ones lose less accuracy.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    source = onnx.load(graph)
    takes = {i.name for i in source.graph.input}
    if outputs == "int8":
        equalise(source, batches)
    tables = _set_defaults_aside(source)
    feeds = {tensor.name: numpy_helper.to_array(tensor) for tensor in tables}
    kept: dict[str, Any] = {"OpTypesToExcludeOutputQuantization": ["Conv"]}

    class Reader(CalibrationDataReader):
        """Hands the batches out one by one, again from the start after `rewind`."""

        def __init__(self) -> None:
            self.left: Iterator[Batch] = iter(batches)

        def get_next(self) -> Batch | None:
            batch = next(self.left, None)
            return batch and {**feeds, **{name: batch[name] for name in batch if name in takes}}

        def rewind(self) -> None:
            self.left = iter(batches)

    with _quiet():
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
    made = onnx.load(path)
    made.graph.initializer.extend(tables)
    onnx.save(made, path)


def _set_defaults_aside(model: onnx.ModelProto) -> list[onnx.TensorProto]:
    """Take the tables' defaults out of the graph, so that they must be fed; returns them.

    ONNX Runtime warns of each default when the quantiser opens the graph. How much it says is a
    setting of the whole process that cannot be read, so nobody could put the user's back: there
    must be nothing to say.
    """
    inputs = {value.name for value in model.graph.input}
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]
    model.graph.initializer.extend(x for x in tensors if x.name not in inputs)
    return [x for x in tensors if x.name in inputs]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice to the root logger."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)

"""INT8 by ONNX Runtime's quantiser: a QDQ graph calibrated on images of every domain.

Only the trunk's convolutions are quantised; the per-domain products and sums and the heads stay
float32, so the tables stay what they are in every other graph.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from prunion.exporter.int8_ranges import equalise
from prunion.exporter.options import ExportOptions
from prunion.exporter.probe import open_graph
from prunion.runtime.errors import VerificationError
from prunion.trainer.batches import eval_batches
from prunion.trainer.checkpoint import Checkpoint
from prunion.trainer.domains import Domain, open_domain
from prunion.trainer.transforms import eval_transform

__all__ = ["calibration_batches", "graph_accuracy", "int8_graph"]

BATCH = 32
Batch = dict[str, np.ndarray]


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
    with tempfile.TemporaryDirectory() as folder:
        even, path = Path(folder) / "even.onnx", Path(folder) / "int8.onnx"
        source = onnx.load(graph)
        equalise(source, batches)
        onnx.save(source, even)
        _quantise(even, path, batches)
        model = onnx.load(path)
        before = graph_accuracy(graph, domains, loaded)
        after = graph_accuracy(path, domains, loaded)
    model.producer_name = "prunion"
    onnx.checker.check_model(model, full_check=True)
    for name, accuracy in before.items():
        drop = 100 * (accuracy - after[name])
        if drop > options.int8_max_drop + 1e-9:
            raise VerificationError(
                f"domain {name}: INT8 costs {drop:.1f} points of accuracy ({accuracy:.1%} → "
                f"{after[name]:.1%}), more than {options.int8_max_drop:g}; nothing was written: "
                "raise --int8-max-drop or leave out --int8"
            )
    facts = {
        "accuracy": {name: [before[name], after[name]] for name in before},
        "images": {domain.name: len(domain.test) for domain in domains},
        "max_drop": options.int8_max_drop,
        "calibration_images": options.int8_images,
    }
    return model, facts


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


def _quantise(graph: Path, path: Path, batches: list[Batch]) -> None:
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader

    takes = {i.name for i in onnx.load(graph).graph.input}

    class Reader(CalibrationDataReader):
        """Hands the batches out one by one, again from the start after `rewind`."""

        def __init__(self) -> None:
            self.left: Iterator[Batch] = iter(batches)

        def get_next(self) -> Batch | None:
            batch = next(self.left, None)
            return batch and {name: batch[name] for name in batch if name in takes}

        def rewind(self) -> None:
            self.left = iter(batches)

    with _quiet():
        quantize_static(
            graph,
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
            },
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantiser's advice to the root logger, and ONNX Runtime's on our tables."""
    import onnxruntime

    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        logger.setLevel(level)
        onnxruntime.set_default_logger_severity(2)

"""The largest value that each tensor of a graph takes: what decides whether float16 can hold it.

float16 ends at 65504. ONNX Runtime's CPU computes float16 in float32 and rounds in between, others
do not, so an agreement measured there does not show what leaves the range elsewhere.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping

import numpy as np
import onnx
from onnx import helper

from prunion.exporter.graph.probe import make_probe, open_graph
from prunion.exporter.graph.variants.int8 import calibration_batches
from prunion.runtime.base import reason_of
from prunion.runtime.errors import PrunionError
from prunion.trainer.data import open_domain
from prunion.trainer.network import Checkpoint

__all__ = ["float_values", "largest_values", "range_images"]

log = logging.getLogger(__name__)

Batch = Mapping[str, np.ndarray]
# Of the run's own images: so many of each domain, and of all together.
EACH, ALL = 16, 256


def float_values(model: onnx.ModelProto) -> set[str]:
    """Names of every float32 value."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    infos = [*graph.value_info, *graph.input, *graph.output]
    names = {i.name for i in infos if i.type.tensor_type.elem_type == onnx.TensorProto.FLOAT}
    return names | {i.name for i in graph.initializer if i.data_type == onnx.TensorProto.FLOAT}


def largest_values(model: onnx.ModelProto, batches: Iterator[Batch]) -> dict[str, float]:
    """The largest magnitude of `image`, and of every float32 value that a node gives, on `batches`.

    The graph finds each out itself, so that no value outlives its use: all of them together are
    many times what a run needs.
    """
    watched = onnx.ModelProto.FromString(model.SerializeToString())
    graph, floats = watched.graph, float_values(model)
    values = [name for node in graph.node for name in node.output if name in floats]
    del graph.output[:]
    for name in values:
        for kind in ("ReduceMax", "ReduceMin"):
            graph.node.append(helper.make_node(kind, [name], [f"{name}_{kind}"], keepdims=0))
            info = helper.make_tensor_value_info(f"{name}_{kind}", onnx.TensorProto.FLOAT, [])
            graph.output.append(info)
    session, largest = open_graph(watched.SerializeToString()), np.zeros(len(values) + 1)
    takes = {value.name for value in session.get_inputs()}
    for batch in batches:
        feeds = {name: value for name, value in batch.items() if name in takes}
        found = np.abs(np.array(session.run(None, feeds), np.float64)).reshape(-1, 2).max(1)
        largest = np.maximum(largest, [*found, np.abs(feeds["image"]).max()])
    return dict(zip([*values, "image"], largest.tolist(), strict=True))


def range_images(loaded: Checkpoint) -> Iterator[Batch]:
    """Images for `largest_values`, one at a time: `image [1, 3, H, W]`, `domain [1]`.

    For each domain noise, black, white, and what lies furthest apart: black and white pixels, and
    blocks of them. Then the run's own training images, where they can be read.
    """
    shape, domains = loaded.config.input, len(loaded.meta["domains"])
    noise = make_probe(1, shape.size, shape.mean, shape.std, domains=1).images
    images = [*noise, *_extremes(shape.size, shape.mean, shape.std)]
    for row in range(domains):
        for image in images:
            yield {"image": image[None], "domain": np.array([row])}
    for batch in _own_images(loaded, max(min(EACH, ALL // domains), 1)):
        for image, domain in zip(batch["image"], batch["domain"], strict=True):
            yield {"image": image[None], "domain": domain[None]}


def _extremes(size: tuple[int, int], mean: tuple[float, ...], std: tuple[float, ...]) -> np.ndarray:
    """`[4, 3, H, W]` float32, normalised."""
    random = np.random.default_rng(0)
    pixels = random.integers(0, 2, (4, 3, *size)).astype(np.float32)
    pixels[0], pixels[1] = 0, 1
    rows, columns = (np.arange(side) // 8 for side in size)
    pixels[2] = pixels[2][:, rows][:, :, columns]
    means, stds = np.array([mean, std], np.float32).reshape(2, 3, 1, 1)
    return (pixels - means) / stds


def _own_images(loaded: Checkpoint, count: int) -> list[dict[str, np.ndarray]]:
    config = loaded.config
    try:
        orientation = config.input.orientation
        domains = [open_domain(domain, config.seed, orientation) for domain in config.domains]
        return calibration_batches(domains, loaded, count)
    except (PrunionError, OSError) as exc:
        log.info(
            "what float16 must hold is judged by noise alone, the run's images cannot be read: %s",
            reason_of(exc),
        )
        return []

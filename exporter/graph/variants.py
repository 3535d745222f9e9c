"""The fp32 graph's variants: float16, INT8, uint8 images. Each is compared before it is kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx

from prunion.exporter.graph.agreement import check_errors, tolerance_of
from prunion.exporter.graph.float16 import half_graph
from prunion.exporter.graph.int8 import int8_graph
from prunion.exporter.graph.probe import Probe, make_probe, open_graph, relative_errors, run_graph
from prunion.exporter.graph.uint8 import pixel_graph
from prunion.exporter.graph.writer import save_graph
from prunion.exporter.options import ExportOptions
from prunion.trainer.network.checkpoint import Checkpoint

__all__ = ["write_variants"]


def write_variants(
    folder: Path, model: onnx.ModelProto, loaded: Checkpoint, options: ExportOptions
) -> dict[str, dict[str, Any]]:
    """Write every variant of `model` (`model.onnx`, there already) that `options` asks for.

    Returns:
        By variant, its agreement with the fp32 graph on a mixed batch of noise, and for INT8 the
        accuracy before and after of each domain.

    Raises:
        VerificationError: a variant disagrees, or a domain lost too much accuracy.
    """
    shape, names = loaded.config.input, [d["name"] for d in loaded.meta["domains"]]
    probe = make_probe(
        max(2 * len(names), 4), shape.size, shape.mean, shape.std, domains=len(names)
    )
    reference = run_graph(open_graph(folder / "model.onnx"), probe)
    facts: dict[str, dict[str, Any]] = {}

    def keep(variant: str, graph: onnx.ModelProto, more: dict[str, Any]) -> None:
        path = folder / f"model.{variant}.onnx"
        save_graph(graph, path)
        facts[variant] = {**_agreement(path, variant, reference, probe, names), **more}

    made = {"fp32": model}
    if options.fp16:
        made["fp16"] = half_graph(model, options.fp16_image)
        keep("fp16", made["fp16"], {})
    if options.int8:
        made["int8"], more = int8_graph(folder / "model.onnx", loaded, options)
        keep("int8", made["int8"], more)
    if options.uint8:
        for variant, graph in made.items():
            pixels = pixel_graph(graph, len(names), shape.mean, shape.std)
            keep(f"{variant}-uint8", pixels, {})
    return facts


def _agreement(
    path: Path, variant: str, reference: Any, probe: Probe, names: list[str]
) -> dict[str, Any]:
    got = run_graph(open_graph(path), probe)
    errors = relative_errors(reference, got, probe.domains, names, f"the {variant} graph")
    limit = tolerance_of(variant)
    if variant.startswith("int8"):  # noise is outside the calibrated ranges; accuracy has decided
        limit = max(limit, round(1.25 * max(errors.values()), 2))
    check_errors(errors, limit, f"the {variant} graph", "the fp32 graph")
    return {"max_relative_error": errors, "tolerance": limit}

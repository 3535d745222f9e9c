"""The fp32 graph's variants: float16, INT8, uint8 images. Each is compared before it is kept."""

from __future__ import annotations

from pathlib import Path

import onnx

from prunion.exporter.graph.agreement import check_errors, tolerance_of
from prunion.exporter.graph.one_colour import check_one_colour, one_colour_probe
from prunion.exporter.graph.probe import make_probe, open_graph, relative_errors, run_graph
from prunion.exporter.graph.variants.activations import largest_values, range_images
from prunion.exporter.graph.variants.float16 import float32_layers, half_graph
from prunion.exporter.graph.variants.int8 import int8_graph
from prunion.exporter.graph.variants.uint8 import pixel_graph
from prunion.exporter.graph.writer import save_graph
from prunion.exporter.options import ExportOptions
from prunion.runtime.bundle import Int8Account, VariantCheck
from prunion.trainer.network import Checkpoint

__all__ = ["write_variants"]


def write_variants(
    folder: Path, model: onnx.ModelProto, loaded: Checkpoint, options: ExportOptions
) -> dict[str, VariantCheck]:
    """Write every variant of `model` (`model.onnx`, there already) that `options` asks for.

    Returns:
        By variant, its agreement with the fp32 graph on a mixed batch of noise, and for INT8 the
        accuracy before and after of each domain; for float16 the layers that stay float32.

    Raises:
        VerificationError: a variant disagrees, a domain lost too much accuracy, or float16 is too
            small for every layer.
    """
    shape, names = loaded.config.input, [d["name"] for d in loaded.meta["domains"]]
    probe = make_probe(
        max(2 * len(names), 4), shape.size, shape.mean, shape.std, domains=len(names)
    )
    flat = one_colour_probe(shape.size, shape.mean, shape.std, domains=len(names))
    base = open_graph(folder / "model.onnx")
    reference, of_flat = run_graph(base, probe), run_graph(base, flat)
    checks: dict[str, VariantCheck] = {}

    def keep(variant: str, graph: onnx.ModelProto, cost: Int8Account | None = None) -> None:
        path = folder / f"model.{variant}.onnx"
        save_graph(graph, path)
        session, what = open_graph(path), f"the {variant} graph"
        errors = relative_errors(reference, run_graph(session, probe), probe.domains, names, what)
        check_errors(errors, tolerance_of(variant), what, "the fp32 graph")
        check_one_colour(of_flat, run_graph(session, flat), flat, names, what)
        kept = layers if variant.startswith("fp16") else {}
        checks[variant] = VariantCheck(errors, tolerance_of(variant), cost, kept)

    made, layers = {"fp32": model}, dict[str, float]()
    if options.fp16:
        largest = largest_values(model, range_images(loaded))
        layers = float32_layers(model, largest)
        made["fp16"] = half_graph(model, options.fp16_image, largest)
        keep("fp16", made["fp16"])
    if options.int8:
        made["int8"], cost = int8_graph(folder / "model.onnx", loaded, options)
        keep("int8", made["int8"], cost)
    if options.uint8:
        for variant, graph in made.items():
            pixels = pixel_graph(graph, len(names), shape.mean, shape.std)
            keep(f"{variant}-uint8", pixels)
    return checks

"""A bundle's files held against each other: graph, unit table, packs and manifest."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import onnx

from prunion.exporter.bundle import graph_trunk_hash
from prunion.exporter.counts import initializers, recount
from prunion.runtime.base import LITTER
from prunion.runtime.bundle import Bundle, adapter_row

__all__ = [
    "check_graph",
    "check_listed",
    "check_packs",
    "check_tables",
    "check_trunk",
    "check_unlisted",
]


def check_unlisted(bundle: Bundle) -> Iterator[str]:
    """Files that the manifest does not know."""
    known = {"manifest.json", *bundle.manifest.files}
    for file in sorted(bundle.path.rglob("*")):
        listed = file.relative_to(bundle.path).as_posix() in known
        if file.is_file() and not listed and file.name not in LITTER:
            yield f"{file} is not in the manifest: remove it"


def check_listed(bundle: Bundle) -> Iterator[str]:
    """The graph that every other is held against, which an export always writes."""
    if "fp32" not in bundle.manifest.graphs:
        yield (
            f"{bundle.path} lists no fp32 graph, which its trunk's hash is of and all others are "
            "compared with: copy the bundle whole, or export it again"
        )


def check_graph(bundle: Bundle, model: onnx.ModelProto) -> Iterator[str]:
    """Widths, parameters and MACs counted again."""
    manifest, counted = bundle.manifest, recount(model)
    for layer, (_, width) in manifest.widths.items():
        shape = counted.shapes.get(f"{layer}.weight", counted.shapes.get(layer))
        if shape is None:
            yield f"holds no weight of {layer}, which the manifest lists"
        # A linear layer's weight may be stored transposed.
        elif width != shape[0] and not (len(shape) == 2 and width == shape[1]):
            yield f"{layer} is {shape[0]} wide, the manifest says {width}"
    for name in counted.shapes:
        if name.removesuffix(".weight") not in manifest.widths:
            yield f"holds a weight {name} that the manifest does not list"
    for what, found in (("params", counted.params), ("macs", sum(counted.macs.values()))):
        claimed = getattr(manifest, what)["exported"]
        if found != claimed:
            yield f"{found:,} {what} in the file, the manifest says {claimed:,}"
    yield from _check_adapters(bundle, model)


def _check_adapters(bundle: Bundle, model: onnx.ModelProto) -> Iterator[str]:
    """The table of adapters, and what it is said to hold and to compute for an image."""
    manifest, entries = bundle.manifest, bundle.manifest.adapters
    shapes = {x.name: tuple(x.dims) for x in model.graph.initializer}
    held = (len(manifest.domains), sum(entry.size for entry in entries))
    if entries and shapes.get("adapters") != held:
        yield f"its adapters are {shapes.get('adapters')}, the manifest says {held}"
    positions = {layer.weight: layer.positions for layer in bundle.unit_table().layers}
    run = sum(entry.size * positions.get(entry.weight, 0) for entry in entries)
    for what, found in (("params", math.prod(held)), ("macs", run)):
        claimed = getattr(manifest, what).get("adapters", 0)
        if found != claimed:
            yield f"{found:,} {what} of adapters, the manifest says {claimed:,}"


def check_tables(bundle: Bundle, model: onnx.ModelProto) -> Iterator[str]:
    """The unit table's slots against the tensors they speak of."""
    values, table = initializers(model), bundle.unit_table()
    for (tensor, axis), units in table.slots.items():
        value = values.get(tensor, values.get(f"{tensor}_quantized"))
        if value is None:
            yield f"the unit table lists {tensor}, which the graph does not hold"
        elif axis >= value.ndim or value.shape[axis] != len(units):
            yield f"{tensor} is {list(value.shape)}, the unit table has {len(units)} on axis {axis}"
    if table.params(np.ones(table.count, dtype=bool)) != bundle.manifest.params["exported"]:
        yield "the unit table's layers and the manifest count different params"
    if table.macs(np.ones(table.count, dtype=bool)) != bundle.manifest.macs["exported"]:
        yield "the unit table's layers and the manifest count different MACs"


def check_packs(bundle: Bundle, model: onnx.ModelProto) -> Iterator[str]:
    """Every domain pack against the graph's default tables and the unit table."""
    values, table = initializers(model), bundle.unit_table()
    weight, bias = values.get("head_weight"), values.get("head_bias")
    columns, entries = table.slots.get(("bank", 1)), bundle.manifest.adapters
    for row, domain in enumerate(bundle.manifest.domains):
        pack, count = bundle.pack(domain.name), len(domain.classes)
        if "bank" in values and not np.array_equal(values["bank"][row], pack.bank):
            yield f"domain {domain.name}: its pack's bank is not row {row} of the graph's"
        if entries and not np.array_equal(values["adapters"][row], adapter_row(entries, pack.own)):
            yield f"domain {domain.name}: its pack's adapters are not row {row} of the graph's"
        if weight is not None:
            own = _own_weight(weight, values.get("head_columns"), row, count)
            if own.shape != pack.head_weight.shape or not np.array_equal(own, pack.head_weight):
                yield f"domain {domain.name}: its pack's head_weight is not the graph's"
        if bias is not None:
            line = np.atleast_2d(bias)[row]
            if not np.array_equal(line[:count], pack.head_bias):
                yield f"domain {domain.name}: its pack's head_bias is not the graph's"
            if not np.isneginf(line[count:]).all():
                yield f"domain {domain.name}: head_bias is not -inf past its {count} classes"
        if columns is not None and len(pack.switches) == table.count:
            off = np.append(pack.switches == 0, False)[columns]
            if pack.bank[off].any():
                yield f"domain {domain.name}: its bank is not zero where its switches are off"
        elif columns is not None:
            yield f"domain {domain.name}: {len(pack.switches)} switches for {table.count} units"


def check_trunk(bundle: Bundle, model: onnx.ModelProto) -> Iterator[str]:
    """The trunk's hash, which ties packs to it, from the fp32 weights themselves."""
    manifest = bundle.manifest
    order = [[e.layer, e.kind, e.offset, e.size] for e in manifest.bank]
    found = graph_trunk_hash(model, order, bundle.shared_parts())
    if found != manifest.trunk_hash:
        yield (
            f"its weights hash to trunk {found[:12]}, the manifest says "
            f"{manifest.trunk_hash[:12]}: they are not those that the packs were made for"
        )


def _own_weight(weight: np.ndarray, columns: np.ndarray | None, row: int, count: int) -> np.ndarray:
    """One domain's classifier `[F, C]` out of a gathered, concatenated or single head."""
    if weight.ndim == 3:
        return weight[row, :, :count]
    return weight[:, :count] if columns is None else weight[:, columns[row, :count]]

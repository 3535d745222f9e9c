"""Edits of a bundle's graph: pinned to one domain, and sliced to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.bundle.pack import Pack
from prunion.runtime.bundle.unit_table import UnitTable
from prunion.runtime.errors import BundleError
from prunion.runtime.graph.form import GraphForm
from prunion.runtime.graph.inputs import load_graph
from prunion.runtime.graph.norms import normalise_affines
from prunion.runtime.graph.slice import slice_channels

__all__ = ["TABLES", "gather_heads", "pin_domain", "pin_form", "pin_pack"]


TABLES = ("bank", "head_weight", "head_bias")


def pin_domain(graph: Path | str | bytes, index: int) -> bytes:
    """The same graph for one domain: takes `image` only, and a session folds the rest away.

    `domain` becomes a constant `[1]`, whose gathered rows broadcast over the batch; the tables
    leave the graph's inputs, because nothing folds that a caller might override.
    """
    model, onnx = load_graph(graph)
    constants = {"domain", *TABLES}
    kept = [value for value in model.graph.input if value.name not in constants]
    if len(kept) == len(model.graph.input):
        raise BundleError("the graph has no input `domain`: export the bundle again")
    _replace_inputs(model, kept)
    pinned = onnx.numpy_helper.from_array(np.array([index], dtype=np.int64), "domain")
    model.graph.initializer.append(pinned)
    normalise_affines(model)
    return model.SerializeToString()


def pin_pack(
    graph: Path | str | bytes,
    pack: Pack,
    table: UnitTable | None = None,
    alive: np.ndarray | None = None,
) -> bytes:
    """The graph for one pack, wherever it came from: takes `image`, gives its own C logits.

    With `table` and `alive` `[U]` bool it is cut down to those units. Raises BundleError,
    UnsupportedGraphError if a node cannot be sliced.
    """
    model, onnx = load_graph(graph)
    # Nothing folds that a caller might override: every input with a default leaves.
    constants = {"domain", *(x.name for x in model.graph.initializer)}
    kept = [value for value in model.graph.input if value.name not in constants]
    old = {x.name: x for x in model.graph.initializer if x.name in TABLES}
    if len(kept) == len(model.graph.input) or len(old) < len(TABLES):
        raise BundleError("the graph has no input `domain` or no tables: export the bundle again")
    _replace_inputs(model, kept)
    for name, initializer in old.items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(initializer.data_type)
        row = getattr(pack, name)[None].astype(dtype)
        initializer.CopyFrom(onnx.numpy_helper.from_array(row, name))
    zero = onnx.numpy_helper.from_array(np.zeros(1, dtype=np.int64), "domain")
    model.graph.initializer.append(zero)
    if table is not None and alive is not None:
        slice_channels(model, table, alive)
    normalise_affines(model)
    return model.SerializeToString()


def _replace_inputs(model: Any, kept: list[Any]) -> None:
    copies = [type(value).FromString(value.SerializeToString()) for value in kept]
    del model.graph.input[:]
    model.graph.input.extend(copies)
    # Shapes noted between nodes name N for the gathered rows, which are now one row.
    del model.graph.value_info[:]


def pin_form(
    graph: Path | str | bytes,
    form: GraphForm,
    pack: Pack,
    table: UnitTable | None = None,
    alive: np.ndarray | None = None,
) -> bytes:
    """`graph` for one pack: takes `image` as `form` says, gives the pack's own C logits.

    With `table` (as `form.unit_table` gives it) and `alive` `[U]` bool it is cut down to those
    units. Raises BundleError, UnsupportedGraphError if a node cannot be sliced.
    """
    if form.single:
        return graph if isinstance(graph, bytes) else Path(graph).read_bytes()
    if form.heads == "gathered" and form.image != "uint8":
        return pin_pack(graph, pack, table, alive)
    model, onnx = load_graph(graph)
    if form.heads == "concatenated":
        gather_heads(model.graph, onnx)
    for tensor in model.graph.initializer:
        if tensor.name == "pixels":
            tensor.CopyFrom(onnx.numpy_helper.from_array(form.pixels[None], "pixels"))
    return pin_pack(model.SerializeToString(), pack, table, alive)


def gather_heads(graph: Any, onnx: Any) -> None:
    """Turn concatenated heads back into gathered ones, in place.

    A pinned graph has one row of tables for a whole batch. That broadcasts through a gathered
    head; `GatherElements` would answer for the first image only.
    """
    pick = _reader(graph, "GatherElements")
    product = next((n for n in graph.node if pick.input[0] in n.output), None)
    columns = next((n for n in graph.node if pick.input[1] in n.output), None)
    if product is None or columns is None or "head_weight" not in product.input:
        raise BundleError("the graph's head is no concatenated one: export the bundle again")
    node, middle = onnx.helper.make_node, onnx.numpy_helper.from_array(np.array([1]), "head_axis")
    features, domain = product.input[0], columns.input[1]
    made = [
        node("Unsqueeze", [features, "head_axis"], ["head_rows"], "head_rows"),
        node("Gather", ["head_weight", domain], ["head_own"], "head_own", axis=0),
        node("MatMul", ["head_rows", "head_own"], ["head_scores"], "head_scores"),
        node("Squeeze", ["head_scores", "head_axis"], [pick.output[0]], "head_logits"),
    ]
    gone = {pick.output[0], product.output[0], columns.output[0]}
    nodes = []
    for old in graph.node:
        if old.output[0] == pick.output[0]:
            nodes += made
        elif old.output[0] not in gone:
            nodes.append(old)
    del graph.node[:]
    graph.node.extend(nodes)
    graph.initializer.append(middle)
    for values in (graph.initializer, graph.input):
        for value in [x for x in values if x.name == "head_columns"]:
            values.remove(value)


def _reader(graph: Any, kind: str) -> Any:
    for node in graph.node:
        if node.op_type == kind:
            return node
    raise BundleError(f"the graph has no {kind}, though its heads are concatenated: export again")

"""Pinning for every form of graph: what `graph_edit` needs to see, and what is pinned already."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.errors import BundleError
from prunion.runtime.graph_edit import pin_pack
from prunion.runtime.graph_form import GraphForm
from prunion.runtime.graph_inputs import load_graph
from prunion.runtime.pack import Pack
from prunion.runtime.unit_table import UnitTable

__all__ = ["gather_heads", "pin_form"]


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

"""A bundle's graph pinned to one domain: `domain` becomes a constant, and what it picks folds away.

Nothing folds that a caller might override, so every input with a default leaves the graph's inputs.
The rows gathered for the one domain broadcast over the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import numpy as np

from prunion.runtime.base import reason_of, shown
from prunion.runtime.bundle import Pack, UnitTable, own_weights
from prunion.runtime.errors import BundleError, PrunionError, UnsupportedGraphError
from prunion.runtime.graph.adapters import drop_adapters
from prunion.runtime.graph.form import GraphForm
from prunion.runtime.graph.inputs import ADAPTERS, TABLE_INPUTS, TABLES, load_graph
from prunion.runtime.graph.norms import normalise_affines
from prunion.runtime.graph.slice import slice_channels

if TYPE_CHECKING:
    import onnx

__all__ = ["gather_heads", "pin_domain", "pin_form", "pin_pack"]


def pin_form(
    graph: Path | str | bytes,
    form: GraphForm,
    pack: Pack,
    table: UnitTable | None = None,
    alive: np.ndarray | None = None,
) -> bytes:
    """A graph of any form for one pack: takes `image` as `form` says, gives the pack's C logits.

    With `table` (as `form.unit_table` gives it) and `alive` `[U]` bool it is cut down to those
    units. Raises BundleError, UnsupportedGraphError if a node cannot be sliced.
    """
    if form.single:
        return graph if isinstance(graph, bytes) else Path(graph).read_bytes()
    if form.heads == "gathered" and form.image != "uint8":
        return pin_pack(graph, pack, table, alive)
    model, onnx = load_graph(graph)
    if form.heads == "concatenated":
        with _as(BundleError):
            gather_heads(model.graph, onnx)
    for tensor in model.graph.initializer:
        if tensor.name == "pixels":
            tensor.CopyFrom(onnx.numpy_helper.from_array(form.pixels[None], "pixels"))
    return pin_pack(model.SerializeToString(), pack, table, alive)


def pin_pack(
    graph: Path | str | bytes,
    pack: Pack,
    table: UnitTable | None = None,
    alive: np.ndarray | None = None,
) -> bytes:
    """A graph with gathered heads for one pack, wherever it came from: takes `image`, gives the
    pack's own C logits.

    With `table` and `alive` `[U]` bool it is cut down to those units. Raises BundleError,
    UnsupportedGraphError if a node cannot be sliced.
    """
    model, onnx = load_graph(graph)
    _fix_domain(model, onnx, 0, {x.name for x in model.graph.initializer})
    old = {x.name: x for x in model.graph.initializer if x.name in TABLES}
    if len(old) < len(TABLES):
        raise BundleError("the graph has no tables: export the bundle again")
    for name, initializer in old.items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(initializer.data_type)
        row = getattr(pack, name)[None].astype(dtype)
        initializer.CopyFrom(onnx.numpy_helper.from_array(row, name))
    drop_adapters(model.graph)  # they fold into the filters, exactly
    if pack.own:
        _put_own_weights(model, onnx, pack)
    # Cut before the norms are rewritten: the channel analysis reads `Mul` and `Add`.
    if table is not None and alive is not None:
        with _as(UnsupportedGraphError):
            slice_channels(model, table, alive)
    with _as(BundleError):
        normalise_affines(model)
    return bytes(model.SerializeToString())


def _put_own_weights(model: onnx.ModelProto, onnx: ModuleType, pack: Pack) -> None:
    """Put a domain's own weights in the place of the trunk's."""
    kept = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16)
    weights = {
        x.name: x
        for x in model.graph.initializer
        if x.data_type in kept and x.name not in TABLE_INPUTS
    }

    def weight_of(name: str) -> np.ndarray:
        if name not in weights:
            raise BundleError(
                f"pack {pack.name!r} has an own weight {shown(name)}, which the graph does not "
                "hold as floats: export it again"
            )
        array: np.ndarray = onnx.numpy_helper.to_array(weights[name])
        return array.astype(np.float32, copy=False)

    for name, weight in own_weights(pack.own, weight_of).items():
        kind = onnx.helper.tensor_dtype_to_np_dtype(weights[name].data_type)
        made = np.ascontiguousarray(weight, kind)
        weights[name].CopyFrom(onnx.numpy_helper.from_array(made, name))


@contextmanager
def _as(error: type[PrunionError]) -> Iterator[None]:
    """What goes wrong inside, on a graph that is sound ONNX but not as prunion writes it."""
    try:
        yield
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as exc:
        reason = reason_of(exc, typed=True)
        raise error(f"the graph is not as prunion writes it ({reason}): export it again") from exc


def pin_domain(graph: Path | str | bytes, index: int) -> bytes:
    """The same graph for the domain in row `index` of its own tables: takes `image` only."""
    model, onnx = load_graph(graph)
    _fix_domain(model, onnx, index, (*TABLES, ADAPTERS))
    normalise_affines(model)
    return bytes(model.SerializeToString())


def _fix_domain(
    model: onnx.ModelProto, onnx: ModuleType, index: int, defaults: Iterable[str]
) -> None:
    """Make `domain` the constant `[index]`, and `defaults` what nobody can override."""
    constants = {"domain", *defaults}
    kept = [value for value in model.graph.input if value.name not in constants]
    if len(kept) == len(model.graph.input):
        raise BundleError("the graph has no input `domain`: export the bundle again")
    copies = [type(value).FromString(value.SerializeToString()) for value in kept]
    del model.graph.input[:]
    model.graph.input.extend(copies)
    # Shapes noted between nodes name N for the gathered rows, which are now one row.
    del model.graph.value_info[:]
    row = onnx.numpy_helper.from_array(np.array([index], dtype=np.int64), "domain")
    model.graph.initializer.append(row)


def gather_heads(graph: onnx.GraphProto, onnx: ModuleType) -> None:
    """Turn concatenated heads back into gathered ones, in place.

    A pinned graph has one row of tables for a whole batch. That broadcasts through a gathered
    head; `GatherElements` would answer for the first image only.
    """
    pick = next((n for n in graph.node if n.op_type == "GatherElements"), None)
    if pick is None:
        raise BundleError(
            "the graph has no GatherElements, though its heads are concatenated: export again"
        )
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
    for tensor in [x for x in graph.initializer if x.name == "head_columns"]:
        graph.initializer.remove(tensor)
    for value in [x for x in graph.input if x.name == "head_columns"]:
        graph.input.remove(value)

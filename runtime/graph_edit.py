"""Edits of a bundle's graph: pinned to one domain, and sliced to it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.errors import BundleError
from prunion.runtime.graph_inputs import load_graph
from prunion.runtime.graph_norms import normalise_affines
from prunion.runtime.graph_slice import slice_channels
from prunion.runtime.pack import Pack
from prunion.runtime.unit_table import UnitTable

__all__ = ["TABLES", "pin_domain", "pin_pack"]

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

"""A domain's adapters taken out of a pinned graph, where they fold into the convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prunion.runtime.graph.inputs import ADAPTERS

if TYPE_CHECKING:
    import onnx

__all__ = ["drop_adapters"]


def drop_adapters(graph: onnx.GraphProto) -> None:
    """Remove, in place, what is computed from the table `adapters`, and the sums that it ends in.

    A graph without the table stays as it is.
    """
    if ADAPTERS not in {tensor.name for tensor in graph.initializer}:
        return
    flowing, plain = {ADAPTERS}, dict[str, str]()
    kept = []
    for node in graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = plain.get(name, name)
        own = [name for name in node.input if name in flowing]
        if own and node.op_type == "Add" and len(own) < len(node.input):
            plain[node.output[0]] = next(name for name in node.input if name not in flowing)
        elif own:
            flowing.update(node.output)
        else:
            kept.append(node)
    needed = {value.name for value in graph.output}
    for node in reversed(kept):  # what only the adapters read is read by nobody now
        if needed & set(node.output):
            needed.update(node.input)
    left = [
        type(node).FromString(node.SerializeToString())
        for node in kept
        if needed & set(node.output)
    ]
    del graph.node[:]
    graph.node.extend(left)
    for values in (graph.initializer, graph.input):
        for value in [x for x in values if x.name == ADAPTERS]:
            values.remove(value)

"""Graphs in which images of a batch are added to each other, as no bundle's may be."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

KINDS = ("flip", "max", "mean", "roll 2", "roll 12")


def mix(model: onnx.ModelProto, kind: str) -> None:
    """Half of another image, or of what the batch has in common, is added to each image."""
    graph, node = model.graph, helper.make_node

    def whole(name: str, *values: int) -> str:
        graph.initializer.append(numpy_helper.from_array(np.array(values, np.int64), name))
        return name

    first = whole("mix_first", 0)
    if kind in ("max", "mean"):
        found = [node(f"Reduce{kind.title()}", ["image", first], ["mix_other"], keepdims=1)]
    elif kind == "flip":
        ends = whole("mix_last", -1), whole("mix_end", -(2**31))
        found = [node("Slice", ["image", *ends, first, whole("mix_step", -1)], ["mix_other"])]
    else:
        places, end = whole("mix_places", -int(kind.split()[1])), whole("mix_end", 2**31)
        found = [
            node("Slice", ["image", places, end, first], ["mix_last"]),
            node("Slice", ["image", first, places, first], ["mix_others"]),
            node("Concat", ["mix_last", "mix_others"], ["mix_other"], axis=0),
        ]
    graph.initializer.append(numpy_helper.from_array(np.array(0.5, np.float32), "mix_half"))
    found.append(node("Mul", ["mix_other", "mix_half"], ["mix_share"]))
    found.append(node("Add", ["image", "mix_share"], ["mix_image"]))
    for reader in graph.node:
        for place, name in enumerate(reader.input):
            reader.input[place] = "mix_image" if name == "image" else name
    nodes = [*found, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    for place, made in enumerate(found):
        made.name = f"mix_{place}"


def mix_domain(model: onnx.ModelProto, domain: int) -> None:
    """As `mix` with a shift by two, but images of one domain only take of another."""
    whole = {"domain": np.array(domain), "shape": np.array([-1, 1, 1, 1])}
    _gate(
        model,
        whole,
        ("Equal", ["domain", "mix_domain"], {}),
        ("Cast", ["mix_gate0"], {"to": onnx.TensorProto.FLOAT}),
        ("Reshape", ["mix_gate1", "mix_shape"], {}),
    )


def mix_by_weight(model: onnx.ModelProto) -> None:
    """As `mix` with a shift by two, but only where the first weight is not 0."""
    whole = {"start": np.zeros(4, np.int64), "stop": np.ones(4, np.int64)}
    _gate(
        model,
        whole,
        ("Slice", ["conv.weight", "mix_start", "mix_stop"], {}),
        ("Sign", ["mix_gate0"], {}),
    )


def _gate(
    model: onnx.ModelProto, whole: dict[str, np.ndarray], *steps: tuple[str, list[str], Any]
) -> None:
    mix(model, "roll 2")
    graph, node = model.graph, helper.make_node
    for name, value in whole.items():
        graph.initializer.append(numpy_helper.from_array(value, f"mix_{name}"))
    place = next(n for n, made in enumerate(graph.node) if "mix_share" in made.output)
    nodes = list(graph.node)
    nodes[place].output[0] = "mix_all"
    gate = [node(kind, read, [f"mix_gate{n}"], **of) for n, (kind, read, of) in enumerate(steps)]
    gate.append(node("Mul", ["mix_all", gate[-1].output[0]], ["mix_share"]))
    nodes[place + 1 : place + 1] = gate
    del graph.node[:]
    graph.node.extend(nodes)

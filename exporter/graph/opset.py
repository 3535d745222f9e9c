"""An exported graph restated in an older operator set and file version, then checked."""

from __future__ import annotations

from collections.abc import Callable

import onnx
from onnx import helper, numpy_helper

from prunion.runtime.errors import ConfigError, UnsupportedGraphError
from prunion.runtime.graph import OPERATORS, check_operators, light_copy

__all__ = ["EXPORTED_FROM", "check_structure", "name_after_origin", "restate"]

# torch exports 18 and later by itself.
EXPORTED_FROM = 18
REDUCTIONS = frozenset(["ReduceMean", "ReduceMax", "ReduceMin", "ReduceL2", "ReduceProd"])


def restate(model: onnx.ModelProto, opset: int, ir: int | None = None) -> None:
    """Lower `model` (opset 18 or later) in place to `opset`, and set its IR version.

    Raises:
        UnsupportedGraphError: the graph needs an operator that `opset` has not.
        ConfigError: the IR version is older than the opset.
    """
    if opset < EXPORTED_FROM:
        _lower(model, opset)
        (current,) = (x for x in model.opset_import if x.domain == "")
        current.version = opset
    oldest = helper.find_min_ir_version_for(list(model.opset_import), ignore_unknown=True)
    model.ir_version = oldest if ir is None else ir
    if model.ir_version < oldest or model.ir_version > onnx.IR_VERSION:
        raise ConfigError(
            f"opset {opset} needs an IR version in {oldest}..{onnx.IR_VERSION}, not {ir}"
        )
    try:
        check_operators(model)
        check_structure(model)
    except UnsupportedGraphError as exc:
        raise UnsupportedGraphError(
            f"{exc}: end the backbone before it ([backbone] cut), or choose another"
        ) from None
    except Exception as exc:  # onnx has several unrelated error types
        reason = next(iter(str(exc).strip().splitlines()), type(exc).__name__)
        fix = "choose a later one" if opset < EXPORTED_FROM else "please report this network"
        raise UnsupportedGraphError(
            f"the graph cannot be written in opset {opset} ({reason}): {fix}"
        ) from None


def name_after_origin(model: onnx.ModelProto) -> None:
    """Call what no bundle's graph may hold as the traced network calls it, while torch knows."""
    for node in model.graph.node:
        if node.op_type not in OPERATORS:
            told = {x.key: x.value for x in node.metadata_props}.get("pkg.torch.onnx.fx_node", "")
            node.name = told.partition(" ")[0].lstrip("%") or node.name


def check_structure(model: onnx.ModelProto) -> None:
    """Operators, types and shapes of a model in memory, weights taken for inputs.

    `prunion verify` checks the file with its weights.

    Raises whatever onnx raises.
    """
    onnx.checker.check_model(light_copy(model), full_check=True)


def _lower(model: onnx.ModelProto, opset: int) -> None:
    """What opsets 14 to 18 added to the operators that prunion's graphs use."""
    rules: dict[str, Callable[[onnx.ModelProto, onnx.NodeProto], None]] = {
        **dict.fromkeys(REDUCTIONS, _axes_as_attribute),
        "Split": _without_split_count,
        "Pad": _without_pad_axes,
    }
    if opset < 14:
        rules["Reshape"] = _without_allowzero
    before = _read(model)
    for node in model.graph.node:
        if node.op_type in rules:
            rules[node.op_type](model, node)
        if node.op_type == "HardSwish" and opset < 14:
            raise UnsupportedGraphError("HardSwish came with opset 14: choose 14 or later")
    # Constants that are attributes by now: ONNX Runtime tells of each one that nobody reads.
    gone = before - _read(model)
    for held in (model.graph.initializer, model.graph.value_info):
        for value in [x for x in held if x.name in gone]:
            held.remove(value)
    for maker in [x for x in model.graph.node if x.op_type == "Constant"]:
        if gone.issuperset(maker.output):
            model.graph.node.remove(maker)


def _read(model: onnx.ModelProto) -> set[str]:
    """What nodes read."""
    return {name for node in model.graph.node for name in node.input}


def _axes_as_attribute(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Opset 18 made a reduction's axes an input."""
    axes = _constant(model, node, 1)
    kept = [a for a in node.attribute if a.name != "noop_with_empty_axes"]
    del node.attribute[:]
    node.attribute.extend(kept)
    if axes is not None:
        node.attribute.append(helper.make_attribute("axes", axes))
    del node.input[1:]


def _without_split_count(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    """Opset 18 added `num_outputs` for equal parts; before it, none given means the same."""
    _drop_attribute(node, "num_outputs")


def _without_pad_axes(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    if len(node.input) > 3 and node.input[3]:
        raise UnsupportedGraphError(f"node {node.name}: Pad's axes came with opset 18: choose it")


def _without_allowzero(model: onnx.ModelProto, node: onnx.NodeProto) -> None:
    for attribute in node.attribute:
        if attribute.name == "allowzero" and attribute.i:
            shape = _constant(model, node, 1)
            if shape is None or 0 in shape:
                raise UnsupportedGraphError(f"node {node.name}: allowzero came with opset 14")
    _drop_attribute(node, "allowzero")


def _drop_attribute(node: onnx.NodeProto, name: str) -> None:
    kept = [a for a in node.attribute if a.name != name]
    del node.attribute[:]
    node.attribute.extend(kept)


def _constant(model: onnx.ModelProto, node: onnx.NodeProto, place: int) -> list[int] | None:
    """A constant input's values; None where the node has no such input."""
    if len(node.input) <= place or not node.input[place]:
        return None
    name = node.input[place]
    for initializer in model.graph.initializer:
        if initializer.name == name:
            return [int(x) for x in numpy_helper.to_array(initializer).reshape(-1)]
    for maker in model.graph.node:
        if name in maker.output and maker.op_type == "Constant":
            value = helper.get_node_attr_value(maker, "value")
            return [int(x) for x in numpy_helper.to_array(value).reshape(-1)]
    raise UnsupportedGraphError(
        f"node {node.name}: {node.op_type} computes {name}: choose opset 18"
    )

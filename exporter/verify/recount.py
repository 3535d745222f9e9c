"""What a graph really holds, counted from its nodes, and whether that keeps the budget."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx
from onnx import numpy_helper

from prunion.runtime.bundle import BudgetAccount, Bundle, read_profile
from prunion.runtime.errors import ConfigError, PrunionError
from prunion.runtime.graph import TABLE_INPUTS
from prunion.trainer.channels import einsum_products
from prunion.trainer.config import BudgetConfig, BudgetKind

__all__ = [
    "Counted",
    "check_budget",
    "initializers",
    "recount",
]

# The places among each node's inputs at which its weight may stand.
COUNTED = {"Conv": (1,), "ConvTranspose": (1,), "Gemm": (1, 0), "MatMul": (1, 0)}


@dataclass(frozen=True)
class Counted:
    """Weights and multiply-accumulates of every convolution and linear layer, heads apart.

    Attributes:
        shapes: shape of each trunk weight by the trunk's own name, as stored in the graph.
        macs: multiply-accumulates of each for one image.
    """

    shapes: Mapping[str, tuple[int, ...]]
    macs: Mapping[str, int]

    @property
    def params(self) -> int:
        """Weights in all."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def initializers(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Every initializer by name."""
    return {i.name: numpy_helper.to_array(i) for i in model.graph.initializer}


def recount(model: onnx.ModelProto) -> Counted:
    """Count a graph again; knows float graphs and quantised (QDQ) ones."""
    values = {i.name: tuple(i.dims) for i in model.graph.initializer}
    makers = {out: node for node in model.graph.node for out in node.output}
    sizes = _sizes(onnx.shape_inference.infer_shapes(model))
    shapes: dict[str, tuple[int, ...]] = {}
    macs: dict[str, int] = {}
    for node in model.graph.node:
        einsum = node.op_type == "Einsum"
        for place in range(len(node.input)) if einsum else COUNTED.get(node.op_type, ()):
            stored = _stored(node.input[place], makers)
            name = stored.removesuffix("_quantized")
            if stored in values and name not in TABLE_INPUTS:
                shapes[name] = values[stored]
                products = _products(node, place, math.prod(values[stored]), sizes)
                macs[name] = macs.get(name, 0) + products
                if not einsum:
                    break
    return Counted(shapes, macs)


def _products(node: Any, place: int, weights: int, sizes: Mapping[str, list[int]]) -> int:
    """Multiply-accumulates of a node for one image; its weight is input number `place`."""
    out = sizes[node.output[0]]
    if node.op_type == "Einsum":
        equation = next(x.s.decode() for x in node.attribute if x.name == "equation")
        every = einsum_products(equation, [sizes[name] for name in node.input])
        return every // weights * weights
    if node.op_type == "MatMul":  # each of its numbers is a sum of so many products
        return math.prod(out) * sizes[node.input[1 - place]][-1 if place == 1 else -2]
    if node.op_type == "Gemm":  # one side of the answer is the weight's, the other one counts
        return weights * out[1 - place]
    around = out if node.op_type == "Conv" else sizes[node.input[0]]
    return weights * math.prod(around[2:])


def _stored(name: str, makers: Mapping[str, Any]) -> str:
    """The initializer behind DequantizeLinear, Cast or Transpose nodes."""
    while name in makers and makers[name].op_type in ("DequantizeLinear", "Cast", "Transpose"):
        name = makers[name].input[0]
    return name


def _sizes(model: onnx.ModelProto) -> dict[str, list[int]]:
    """Known sizes of every value for one image: N counts as 1, `3*N` as 3."""
    infos = [*model.graph.input, *model.graph.value_info, *model.graph.output]
    held = {i.name: list(i.dims) for i in model.graph.initializer}
    return held | {
        info.name: [d.dim_value or _multiple(d.dim_param) for d in info.type.tensor_type.shape.dim]
        for info in infos
    }


def _multiple(symbol: str) -> int:
    return math.prod(int(factor) for factor in symbol.split("*") if factor.strip().isdigit())


def check_budget(bundle: Bundle) -> Iterator[str]:
    """What the file costs in the budget's unit, whether that is what was asked, and is met.

    Parameters and MACs are the manifest's own, which `check_graph` counts again, or the slices that
    are stored; bytes are the fp32 graph's, switches the unit table's, milliseconds what its
    `profile.json` predicts.
    """
    claimed = bundle.manifest.budget
    try:
        profile = "profile.json" if claimed.kind == "latency" else ""
        kind = cast(BudgetKind, claimed.kind)  # which BudgetConfig checks
        config = BudgetConfig(claimed.asked, kind, profile=profile)
    except ConfigError as exc:
        yield f"its budget is no budget ({exc})"
        return
    if claimed.kind == "latency":
        yield from _check_latency(bundle, config)
    elif claimed.slices:
        yield from _check_slices(bundle, config)
    else:
        yield from _check(claimed, config, _counted(bundle))


def _counted(bundle: Bundle) -> float:
    kind, manifest = bundle.manifest.budget.kind, bundle.manifest
    if kind == "bytes":
        return bundle.held_graph("fp32").size
    if kind == "switches":
        return bundle.unit_table().count
    counts: Mapping[str, float] = getattr(manifest, kind)
    return counts["exported"] + counts.get("adapters", 0)


def _check_slices(bundle: Bundle, config: BudgetConfig) -> Iterator[str]:
    claimed, manifest = bundle.manifest.budget, bundle.manifest
    train = manifest.provenance.config.get("train") if manifest.provenance else None
    if (
        claimed.kind != "params"
        or not isinstance(train, dict)
        or train.get("granularity") != "slice"
    ):
        yield "its budget is said to be of slices, which no domain of it chose"
        return
    try:
        found = _slices_in_use(bundle)
    except Exception as exc:  # a damaged file makes onnx and numpy raise anything
        yield f"its slices cannot be counted ({' '.join(str(exc).split()) or type(exc).__name__})"
        return
    if not bundle.manifest.packed:  # a slice in use may be all zero there, so more may be claimed
        stated = claimed.value * (claimed.backbone if config.is_fraction else 1)
        found = min(max(found, round(stated)), round(manifest.params["exported"]))
    yield from _check(claimed, config, found)


def _slices_in_use(bundle: Bundle) -> int:
    """Weights of the k×k slices that are stored, or of an ordinary graph those not all zero.

    A layer whose weights are a constant of the network has no slices, and counts whole.
    """
    packed = {
        key.removeprefix("packed:"): values
        for key, values in bundle.shared_parts().items()
        if key.startswith("packed:")
    }
    model = onnx.load_from_string(bundle.held_graph("fp32").read())
    values, total = initializers(model), 0
    for name, shape in recount(model).shapes.items():
        if name in packed:
            total += packed[name].size
        elif bundle.manifest.packed:
            total += math.prod(shape)
        else:
            slices = values[name].reshape(*shape[:2], -1)
            total += int(slices.any(-1).sum()) * slices.shape[-1]
    return total


def _check_latency(bundle: Bundle, config: BudgetConfig) -> Iterator[str]:
    claimed = bundle.manifest.budget
    if "profile.json" not in bundle.manifest.files:
        yield "its budget is a latency, but it holds no profile.json"
        return
    try:
        profile, table = read_profile(bundle.file("profile.json")), bundle.unit_table()
        found = profile.milliseconds(table, np.ones(table.count, dtype=bool))
    except (PrunionError, KeyError) as exc:
        yield f"its profile does not fit its unit table ({exc})"
        return
    if not np.isclose(found, claimed.milliseconds, rtol=1e-9):
        yield f"its widths cost {found:.4g} ms, the manifest says {claimed.milliseconds:.4g} ms"
        return
    yield from _check(claimed, config, found)


def _check(claimed: BudgetAccount, config: BudgetConfig, found: float) -> Iterator[str]:
    if config.is_fraction and not claimed.backbone:
        return  # a bundle from before `backbone` was told: a share of what is not known
    value = min(1.0, found / claimed.backbone) if config.is_fraction else found
    if not np.isclose(value, claimed.value, rtol=1e-9):
        yield f"its {claimed.kind} are {value:.6g}, the manifest's budget says {claimed.value:.6g}"
    whole = config.is_fraction and config.amount == 1
    if (whole or found <= config.allowed(claimed.backbone)) != claimed.met:
        yield (
            f"its {claimed.kind} are {value:.6g} of {claimed.asked} asked, but the manifest says "
            f"the budget is {'' if claimed.met else 'not '}met"
        )

"""One walk over a traced graph that ties together the slots that live or die together.

Where it cannot be decided what a channel that is off would do, all channels that arrive are kept
whole: nothing is cut there, so the answer stays what it is.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import fx

from prunion.runtime.base import reason_of
from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone import op_name
from prunion.trainer.channels.ops_keeping import (
    activation_off_zero,
    cat,
    clamp,
    elementwise,
    glu,
    layout,
    pad,
    pool,
    power,
    reduce,
    softmax,
    stack,
    threshold,
)
from prunion.trainer.channels.ops_meeting import add, choose, compare, div, mul
from prunion.trainer.channels.ops_mixing import (
    UnsupportedBatch,
    batch_norm,
    conv,
    group_norm,
    instance_norm,
    linear,
    prelu,
    read_features,
    transposed_conv,
)
from prunion.trainer.channels.products import COUNTED, weights_of_layer
from prunion.trainer.channels.slots import (
    ONE_IMAGE,
    ActivationSlots,
    Flow,
    fixed,
    shape_of,
    size_of_one,
)

__all__ = ["HANDLERS", "KEEPS_ZERO", "LAYOUT", "flow_slots"]

Handler = Callable[[Flow, fx.Node], Any]

# How channels pass through each operation; what is missing here needs all of its channels.
HANDLERS: dict[str, Handler] = {
    # Each channel for itself, and one that is off stays 0.
    **dict.fromkeys(
        "relu relu6 silu hardswish gelu leaky_relu elu celu selu mish tanh clone contiguous to "
        "_to_copy alias neg abs sin erf atan square sign round floor ceil trunc softshrink "
        "hardshrink tanhshrink softsign expm1 positive type_as float".split(),
        elementwise,
    ),
    **dict.fromkeys("hardtanh clamp clamp_min clamp_max".split(), clamp),
    "prelu": prelu,
    "threshold": threshold,
    "pow": power,
    # Each channel for itself, but f(0) is not 0.
    **dict.fromkeys(
        "sigmoid hardsigmoid softplus exp log_sigmoid cos cosh logical_not bitwise_not".split(),
        activation_off_zero,
    ),
    **dict.fromkeys("softmax log_softmax".split(), softmax),
    # Channels only move.
    **dict.fromkeys(
        "view reshape _unsafe_view flatten unflatten permute transpose movedim moveaxis swapaxes "
        "swapdims mT t unsqueeze squeeze expand expand_as broadcast_to view_as reshape_as repeat "
        "tile split split_with_sizes chunk slice select unbind getitem index_select flip roll "
        "channel_shuffle pixel_shuffle pixel_unshuffle".split(),
        layout,
    ),
    **dict.fromkeys(
        "avg_pool1d avg_pool2d avg_pool3d max_pool1d max_pool2d max_pool3d adaptive_avg_pool1d "
        "adaptive_avg_pool2d adaptive_avg_pool3d adaptive_max_pool2d upsample_nearest2d "
        "upsample_bilinear2d upsample_bicubic2d _upsample_nearest_exact2d _upsample_bilinear2d_aa "
        "_upsample_bicubic2d_aa".split(),
        pool,
    ),
    **dict.fromkeys("mean sum amax amin".split(), reduce),
    "cat": cat,
    "glu": glu,
    "pad": pad,
    "stack": stack,
    # Channels are mixed, or tied to each other.
    **dict.fromkeys("add sub rsub".split(), add),
    **dict.fromkeys("where masked_fill maximum minimum".split(), choose),
    **dict.fromkeys(
        "gt ge lt le eq ne logical_and logical_or logical_xor bitwise_and bitwise_or bitwise_xor "
        "__and__ __or__ __xor__".split(),
        compare,
    ),
    **dict.fromkeys("conv1d conv2d conv3d".split(), conv),
    **dict.fromkeys("conv_transpose1d conv_transpose2d".split(), transposed_conv),
    "batch_norm": batch_norm,
    "div": div,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "linear": linear,
    "mul": mul,
}
KEEPS_ZERO = frozenset(
    {name for name, handler in HANDLERS.items() if handler is elementwise}
    | {"hardtanh", "clamp_min", "prelu"}
)
LAYOUT = frozenset(name for name, handler in HANDLERS.items() if handler is layout)

RECURRENT = frozenset("gru lstm rnn_tanh rnn_relu".split())

# Why some operations need all channels: with one off they change the others.
MIXES = {
    "layer_norm": "it normalises over the channels: one that is off would change all others",
    "scaled_dot_product_attention": "attention weighs tokens by all of their channels",
    "matmul": "it multiplies two activations",
    "linalg_vector_norm": "it is made of all channels",
}


def flow_slots(module: fx.GraphModule) -> Flow:
    """Walk a traced graph once and tie together the slots that must live or die together.

    Raises:
        UnsupportedGraphError: the network does not end in features, or an image's answer depends
            on the others in its batch.
    """
    flow = Flow(module)
    batch = next(n for n in module.graph.nodes if n.op == "placeholder").meta["val"].shape[0]
    for node in module.graph.nodes:
        if node.op == "placeholder":
            flow.values[node] = fixed(shape_of(node))
        elif node.op == "get_attr":
            continue
        elif node.op == "output":
            read_features(flow, node)
        elif op_name(node) == "sym_size":
            flow.values[node] = size_of_one(node.meta.get(ONE_IMAGE, node.meta["val"]))
        else:
            flow.values[node] = _follow(flow, node, str(batch))
            if op_name(node) in COUNTED:  # cut or kept whole, it costs what it costs
                flow.layers.extend(weights_of_layer(node))
    return flow


def _follow(flow: Flow, node: fx.Node, batch: str) -> Any:
    made = node.meta.get("val")
    if isinstance(made, int | float | torch.SymInt | torch.SymFloat):
        return _number(flow, node)
    name = op_name(node)
    if name in RECURRENT:  # several outputs, and weights that no count knows
        raise UnsupportedGraphError(
            f"node {node.name}: recurrent layers are not followed: end the backbone before it "
            "([backbone] cut), or take a mean over the sequence in its place"
        )
    reason = _off_batch(node, batch) if name in HANDLERS else _unknown(node)
    for _ in range(2):  # again where what arrives is whole
        if reason is not None:
            _keep_whole(flow, node, reason)
            if name not in HANDLERS or _off_batch(node, batch) is not None:
                break
        noted: tuple[list[Any], ...] = (flow.reads, flow.norms)
        before = [len(part) for part in noted]
        laid = set(flow.weights)
        try:
            return _fitting(HANDLERS[name](flow, node), node)
        except UnsupportedBatch:
            raise
        except Exception as exc:  # an operation used in a way its handler was not written for
            reason = str(exc).removeprefix(f"node {node.name}: ")
            if not isinstance(exc, UnsupportedGraphError):
                reason = f"{name} is used there as prunion does not follow it ({reason_of(exc)})"
        for part, length in zip(noted, before, strict=True):
            del part[length:]
        for key in set(flow.weights) - laid:
            del flow.weights[key]
    if name == "batch_norm":  # every domain's own is in its place: it cannot stay as it is
        raise UnsupportedBatch(_no_norm(node, reason or ""))
    _keep_whole(flow, node, reason or "")
    flow.untouched.update(str(x.target) for x in node.all_input_nodes if x.op == "get_attr")
    return _whole_like(made)


def _no_norm(node: fx.Node, reason: str) -> str:
    return (
        f"node {node.name}: no domain can have a BatchNorm of its own there, because {reason}: "
        "put it behind maps of whole images, [N, C, ...], or use another norm there"
    )


def _number(flow: Flow, node: fx.Node) -> Any:
    """A size or what is computed of sizes, for one image."""
    target: Any = node.target
    try:
        return target(*fx.node.map_arg(node.args, lambda x: flow.values[x]))
    except Exception:
        return 1


def _unknown(node: fx.Node) -> str:
    name = op_name(node)
    return MIXES.get(name, f"how channels pass through {name or node.op} is not known")


def _off_batch(node: fx.Node, batch: str) -> str | None:
    """Why a node's first axis is not the batch alone, None where it is."""
    for x in [*node.all_input_nodes, node]:
        values = x.meta.get("val") if x.op != "get_attr" else None
        for value in values if isinstance(values, list | tuple) else [values]:
            if not isinstance(value, torch.Tensor):
                continue
            sizes = [str(n) for n in value.shape]
            if x is not node and sizes[:1] == ["1"]:  # a constant that meets every image
                continue
            if not sizes or sizes[0] != batch or any(not n.isdigit() for n in sizes[1:]):
                return "the batch does not stand alone on its first axis"
    return None


def _keep_whole(flow: Flow, node: fx.Node, reason: str) -> None:
    """Everything that arrives at `node` is never removed."""
    cut = False
    for x in node.all_input_nodes:
        value = flow.values.get(x)
        for part in value if isinstance(value, tuple) else [value]:
            if isinstance(part, ActivationSlots):
                cut = flow.sets.fix(part.ids) or cut
        if isinstance(value, ActivationSlots):
            flow.values[x] = fixed(tuple(value.ids.shape))
    if cut:
        flow.whole.setdefault(node, reason)


def _fitting(value: Any, node: fx.Node) -> Any:
    """Slots of the node's own shape, where an operand's were broadcast."""
    if isinstance(value, ActivationSlots) and value.ids.shape != shape_of(node):
        shape = shape_of(node)
        return ActivationSlots(value.ids.expand(shape), value.zero.expand(shape))
    return value


def _whole_like(made: Any) -> Any:
    if isinstance(made, list | tuple):
        return tuple(_whole_like(x) for x in made)
    if not isinstance(made, torch.Tensor):
        return made
    return fixed((1, *map(size_of_one, made.shape[1:])))

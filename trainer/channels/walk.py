"""One walk over a traced graph that ties together the slots that live or die together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import fx

from prunion.runtime.errors import UnsupportedGraphError
from prunion.trainer.backbone import op_name
from prunion.trainer.channels.ops_keeping import (
    activation_off_zero,
    cat,
    clamp,
    elementwise,
    layout,
    mean,
    pad,
    pool,
    scale,
)
from prunion.trainer.channels.ops_mixing import add, batch_norm, conv, linear, mul, read_features
from prunion.trainer.channels.slots import ActivationSlots, Flow, SlotSets, fixed, shape_of

__all__ = ["HANDLERS", "KEEPS_ZERO", "LAYOUT", "flow_slots"]

Handler = Callable[[Flow, fx.Node], Any]

# How channels pass through each operation; one that is missing here is refused.
HANDLERS: dict[str, Handler] = {
    # Each channel for itself, and one that is off stays 0.
    **dict.fromkeys(
        "relu relu6 hardtanh silu hardswish gelu leaky_relu elu celu selu mish tanh prelu "
        "clamp_min clone contiguous to _to_copy alias neg abs".split(),
        elementwise,
    ),
    # Each channel for itself, but f(0) is not 0.
    **dict.fromkeys(
        "sigmoid hardsigmoid softplus exp log_sigmoid cos".split(), activation_off_zero
    ),
    # Channels only move.
    **dict.fromkeys(
        "view reshape _unsafe_view flatten permute transpose unsqueeze squeeze expand split "
        "split_with_sizes chunk slice select unbind getitem".split(),
        layout,
    ),
    **dict.fromkeys(
        "avg_pool1d max_pool2d avg_pool2d adaptive_avg_pool2d adaptive_max_pool2d "
        "upsample_nearest2d upsample_bilinear2d".split(),
        pool,
    ),
    "cat": cat,
    "clamp": clamp,
    "div": scale,
    "mean": mean,
    "pad": pad,
    # Channels are mixed, or tied to each other.
    "add": add,
    "batch_norm": batch_norm,
    "conv2d": conv,
    "linear": linear,
    "mul": mul,
    "sub": add,
}
KEEPS_ZERO = frozenset(name for name, handler in HANDLERS.items() if handler is elementwise)
LAYOUT = frozenset(name for name, handler in HANDLERS.items() if handler is layout)

# Why some operations cannot be followed at all: with a channel off they change the others.
MIXES = {
    "layer_norm": " (it normalises over the channels: one that is off changes all others)",
    "group_norm": " (it normalises over groups of channels: one that is off changes the others)",
    "conv1d": " (it slides along the channels: one that is off changes its neighbours)",
    "softmax": " (it weighs the channels or tokens against each other)",
    "scaled_dot_product_attention": " (attention multiplies tokens, not channels)",
}


def flow_slots(module: fx.GraphModule) -> Flow:
    """Walk a traced graph once and tie together the slots that must live or die together.

    Raises:
        UnsupportedGraphError: an operation whose channels cannot be decided, naming its node.
    """
    flow = Flow(SlotSets(), {}, {}, [], [], [])
    for node in module.graph.nodes:
        if node.op == "placeholder":
            flow.values[node] = fixed(shape_of(node))
        elif node.op == "get_attr":
            continue
        elif node.op == "output":
            read_features(flow, node)
        elif op_name(node) == "sym_size":
            flow.values[node] = 1 if node.args[1] == 0 else int(node.meta["val"])
        else:
            flow.values[node] = _follow(flow, node)
    return flow


def _follow(flow: Flow, node: fx.Node) -> Any:
    handler = _handler(node)
    parameters = [x for x in node.all_input_nodes if x.op == "get_attr"]
    follows = any(
        isinstance(flow.values.get(x), ActivationSlots | tuple) for x in node.all_input_nodes
    )
    if parameters and not follows:
        raise UnsupportedGraphError(
            f"node {node.name}: {op_name(node)} computes with {parameters[0].target} alone "
            "(a class token, a weight made of another); prunion follows the image's channels only: "
            "choose a convolutional backbone; `keep` cannot help here"
        )
    try:
        return handler(flow, node)
    except UnsupportedGraphError:
        raise
    except Exception as exc:  # an operation used in a way its handler was not written for
        raise UnsupportedGraphError(
            f"node {node.name}: prunion cannot follow channels through this use of "
            f"{op_name(node)} ({type(exc).__name__}: {exc})"
        ) from exc


def _handler(node: fx.Node) -> Handler:
    name = op_name(node)
    if name not in HANDLERS:
        raise UnsupportedGraphError(
            f"node {node.name}: prunion does not know how channels pass through {name or node.op}"
            f"{MIXES.get(name, '')}; cut the backbone before it ([backbone] cut) or choose another "
            "backbone; `keep` cannot help here"
        )
    return HANDLERS[name]

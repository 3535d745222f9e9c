"""What a node of a stored graph makes, found out without memory for its numbers."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx, nn

from prunion.trainer.backbone import op_name
from prunion.trainer.channels import ONE_IMAGE

__all__ = ["MAKERS", "without_memory"]

# They make a tensor of sizes alone, here without memory until the size is checked.
MAKERS = frozenset(["zeros", "ones", "full", "arange", "linspace"])


def without_memory(node: fx.Node, root: nn.Module, key: str = "val") -> Any:
    """What the node computes, on tensors that have a shape and no memory, those in `meta[key]`."""
    if node.op == "placeholder" and key == ONE_IMAGE:
        return torch.empty(1, *node.meta["val"].shape[1:], device="meta")
    if node.op == "placeholder":
        return torch.empty(node.meta.pop("shape"), device="meta")
    if node.op == "get_attr":
        return operator.attrgetter(str(node.target))(root).to("meta")
    args, kwargs = fx.node.map_arg((node.args, dict(node.kwargs)), lambda n: n.meta[key])
    if node.op == "output":
        return args[0]
    if key == ONE_IMAGE and node.target is torch.ops.aten.squeeze.default:
        source = node.all_input_nodes[0]
        sizes = enumerate(source.meta["val"].shape)  # a batch of one is no axis to drop
        return source.meta[key].squeeze([axis for axis, size in sizes if size == 1])
    args, kwargs = fx.node.map_aggregate((args, kwargs), _nowhere)
    if op_name(node) in MAKERS:
        kwargs = {**kwargs, "device": "meta"}
    target: Any = node.target
    return target(*args, **kwargs)


def _nowhere(value: Any) -> Any:
    return torch.device("meta") if isinstance(value, torch.device) else value

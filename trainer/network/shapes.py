"""What tensors a stored graph may hold, and what its nodes make, without memory for the numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from prunion.trainer.backbone import op_name, tensor_at
from prunion.trainer.channels import ONE_IMAGE

__all__ = ["MAKERS", "TYPES", "unfit_type", "without_memory"]

TYPES = ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")

# They make a tensor of sizes alone, here without memory until the size is checked.
MAKERS = frozenset(["zeros", "ones", "full", "arange", "linspace"])


def unfit_type(dtype: torch.dtype) -> str:
    """Why no graph is kept with a tensor of this type, and the fix; empty if one is."""
    name = str(dtype).removeprefix("torch.")
    if name in TYPES:
        return ""
    fix = f"make it {'float32' if dtype.is_floating_point else 'int32 or int64'} in the network"
    if dtype.is_complex:
        fix = "compute with real numbers there, or end the backbone before it ([backbone] cut)"
    return f"whose {name} cannot be kept in a checkpoint: {fix}"


def without_memory(node: fx.Node, root: nn.Module, key: str = "val") -> Any:
    """What the node computes, on tensors that have a shape and no memory, those in `meta[key]`."""
    if node.op == "placeholder" and key == ONE_IMAGE:
        return torch.empty(1, *node.meta["val"].shape[1:], device="meta")
    if node.op == "placeholder":
        return torch.empty(node.meta.pop("shape"), device="meta")
    if node.op == "get_attr":
        return tensor_at(root, str(node.target)).to("meta")
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

"""What every method with weights of a domain's own has: `W_d = g(W, θ_d)`.

The trunk's graph stays as it is. A forward pass of one domain runs it with its weights replaced,
so a method knows nothing of layers, and everything that reads the trunk knows nothing of methods.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import fx, nn

__all__ = ["WeightAdapter", "without_norm"]


class WeightAdapter(nn.Module):
    """g, and every domain's θ_d as its parameters."""

    def weights(self, shared: Mapping[str, torch.Tensor], domain: int) -> dict[str, torch.Tensor]:
        """W_d of each adapted weight by name, differentiable by θ_d.

        Args:
            shared: W by name, each `[O, I, k, k]` or `[O, I]`.
        """
        raise NotImplementedError

    def bits(self) -> int:
        """What has to be stored of θ_d for one domain beside the trunk, BatchNorm and head."""
        raise NotImplementedError


def without_norm(trunk: fx.GraphModule, names: Iterable[str]) -> set[str]:
    """Which of the weights belong to a layer that no per-domain BatchNorm reads directly."""
    followed = set()
    for node in trunk.graph.nodes:
        if node.op == "get_attr":
            readers = {user for layer in node.users for user in layer.users}
            if readers and all(str(user.target).startswith("norms.") for user in readers):
                followed.add(str(node.target))
    return set(names) - followed

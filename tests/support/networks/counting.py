"""Multiply-accumulates counted by really running one image, whatever the shapes are said to be."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from prunion.trainer.backbone import op_name
from prunion.trainer.network import DomainNet, route

__all__ = ["macs_by_running"]

ADDED_TO = frozenset("addmm addmv addbmm baddbmm".split())  # their first argument is no factor
FACTORS = frozenset({*ADDED_TO, *"linear matmul mm bmm mv dot inner tensordot einsum".split()})


class _Counting(fx.Interpreter):
    total = 0

    def run_node(self, n: fx.Node) -> Any:
        made = super().run_node(n)
        name = op_name(n) if n.op == "call_function" else ""
        if name.startswith("conv"):
            weight = n.args[1]
            assert isinstance(weight, fx.Node)
            if weight.op == "get_attr":
                images = self.map_nodes_to_values(n.args[0], n) if "transpose" in name else made
                self.total += images.numel() * self.env_value(weight, n)[0].numel()
        elif name in FACTORS:
            self.total += self._products(n, name)
        return made

    def env_value(self, value: fx.Node, n: fx.Node) -> torch.Tensor:
        found: torch.Tensor = self.map_nodes_to_values(value, n)
        return found

    def _products(self, n: fx.Node, name: str) -> int:
        """Where all factors are 1, a sum of products is how many they are."""
        args = list(n.args[1 if name in ADDED_TO else 0 :])
        given = list(args[1]) if name == "einsum" else args[:2]  # type: ignore[arg-type]
        stored = [x.op == "get_attr" for x in given]
        ones = [torch.ones_like(self.env_value(x, n), dtype=torch.float64) for x in given]
        rest = [] if name == "linear" or name in ADDED_TO else args[2:]
        args = [args[0], ones] if name == "einsum" else [*ones, *rest]
        if name in ADDED_TO:
            args.insert(0, torch.zeros((), dtype=torch.float64))
        target: Any = n.target
        each = int(target(*args).sum())
        return 0 if all(stored) else each * sum(stored)


def macs_by_running(net: DomainNet, side: int) -> int:
    """Those of every weight that meets an activation, for one image `[1, 3, side, side]`."""
    counting = _Counting(net.trunk)
    image, domain = torch.randn(1, 3, side, side), torch.zeros(1, dtype=torch.int64)
    with torch.no_grad():
        counting.run(image, route(domain, image.device).gated(net.switches))
    return counting.total

"""Finished networks of random numbers, of any method, cut at random: nothing is trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from prunion.trainer.config import load_config
from prunion.trainer.cost import make_budget, make_pricer, select_union
from prunion.trainer.network import adapt_network, build_network, save_checkpoint
from tests.support.tiny_run import tiny_run

__all__ = ["NAMES", "drawn_checkpoint"]

NAMES = {"warm": 2, "cold": 3}


def drawn_checkpoint(
    folder: Path,
    method: str,
    domains: int = 2,
    *,
    settled: bool = True,
    used: float = 1.0,
    resize: int = 16,
    **train: object,
) -> Path:
    """A checkpoint of two domains, or of the first, whose classes `NAMES` counts.

    Each domain uses about the share `used` of the channels that are left. Images are 16 px, cut
    out of those whose shorter side is `resize`.
    """
    path, names = tiny_run(folder, method=f'"{method}"', **train), list(NAMES)[:domains]
    path.write_text(path.read_text("utf-8").replace("size = 16", f"size = 16\nresize = {resize}"))
    if domains == 1:
        path.write_text(path.read_text("utf-8").partition("[domains.cold]")[0], "utf-8")
    config = load_config(path)
    torch.manual_seed(0)
    classes = [NAMES[name] for name in names]
    net = build_network(config.backbone, config.input.size, classes, weights=False)
    adapt_network(net, config.train)
    with torch.no_grad():
        for value in net.parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn_like(value))
    if settled and method == "svd" and net.adapter is not None:  # compresses then
        net.adapter.advance(dict(net.trunk.named_parameters()), 0, "settle")
    if config.train.cut == "union" and config.train.traits.prunes:
        budget = make_budget(config.budget, make_pricer(config.budget, net), cuts=True)
        worth = np.random.default_rng(0).random(net.switches.shape[1])
        net.drop_units(~select_union(worth, budget))
    if used < 1:
        off = torch.rand(net.switches.shape, generator=torch.Generator().manual_seed(1)) >= used
        net.switches[off] = 0
    facts = {
        "domains": [
            {"name": n, "classes": list("abc"[:c])} for n, c in zip(names, classes, strict=True)
        ]
    }
    save_checkpoint(folder / "checkpoint", net.eval(), config, facts, force=False)
    return folder / "checkpoint"

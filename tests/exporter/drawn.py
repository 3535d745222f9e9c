"""Finished networks of random numbers, of any method: nothing is trained."""

from __future__ import annotations

from pathlib import Path

import torch

from prunion.trainer.config import load_config
from prunion.trainer.network import adapt_network, build_network, save_checkpoint
from tests.trainer.tiny_run import tiny_run

__all__ = ["NAMES", "drawn_checkpoint"]

NAMES = {"warm": 2, "cold": 3}


def drawn_checkpoint(folder: Path, method: str, **train: object) -> Path:
    """A checkpoint of two domains, whose classes `NAMES` counts."""
    config = load_config(tiny_run(folder, method=f'"{method}"', **train))
    torch.manual_seed(0)
    net = build_network(config.backbone, config.input.size, [2, 3], weights=False)
    adapt_network(net, config.train)
    with torch.no_grad():
        for value in net.parameters():
            if value.requires_grad:
                value.add_(0.1 * torch.randn_like(value))
    facts = {"domains": [{"name": n, "classes": list("abc"[:c])} for n, c in NAMES.items()]}
    save_checkpoint(folder / "checkpoint", net.eval(), config, facts, force=False)
    return folder / "checkpoint"

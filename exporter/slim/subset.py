"""The same checkpoint with some of its domains only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from prunion.runtime.errors import DomainError
from prunion.trainer.network.checkpoint import Checkpoint
from prunion.trainer.network.domain_norm import DomainNorm

__all__ = ["keep_domains", "kept_units"]


def keep_domains(loaded: Checkpoint, names: Sequence[str]) -> Checkpoint:
    """Leave out every other domain (its BatchNorm, switches and head), in the order of `names`.

    The network is changed in place. Raises DomainError naming what there is.
    """
    rows = torch.tensor([_row(loaded, name) for name in names])
    if len(set(names)) != len(names):
        raise DomainError(f"{', '.join(names)}: a domain is named twice; name each once")
    net = loaded.net
    for norm in net.norms.values():
        _keep_rows(norm, rows)
    net.switches = net.switches[rows]
    net.heads = nn.ModuleList(net.heads[row] for row in rows.tolist())
    net.classes = tuple(net.classes[row] for row in rows)
    configs = tuple(loaded.config.domains[row] for row in rows)
    meta = {**loaded.meta, "domains": [loaded.meta["domains"][row] for row in rows]}
    return replace(loaded, config=replace(loaded.config, domains=configs), meta=meta)


def kept_units(loaded: Checkpoint, everyone: torch.Tensor) -> np.ndarray:
    """Units the sliced network keeps, `[U]` bool: its domains' union, widths rounded up.

    The channels that come back are those that most domains of the whole checkpoint use; no domain
    here does, so they are exact zeros.

    Args:
        everyone: switches of every domain of the checkpoint, `[D, U]`.
    """
    union = np.asarray((loaded.net.switches > 0).any(0).cpu().numpy())
    votes = (everyone > 0).sum(0).cpu().numpy()
    return loaded.net.units.table.round_up(union, loaded.config.budget.round_to, votes)


def _row(loaded: Checkpoint, name: str) -> int:
    known = [domain["name"] for domain in loaded.meta["domains"]]
    if name not in known:
        raise DomainError(f"the checkpoint has no domain {name!r}: it has {', '.join(known)}")
    return known.index(name)


def _keep_rows(norm: DomainNorm, rows: torch.Tensor) -> None:
    norm.weight = nn.Parameter(norm.weight.detach()[rows])
    norm.bias = nn.Parameter(norm.bias.detach()[rows])
    norm.running_mean, norm.running_var = norm.running_mean[rows], norm.running_var[rows]

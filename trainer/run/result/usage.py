"""How a run's channels are used, by layer and by domain: as figures and as text."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prunion.runtime.bundle import UnitTable
from prunion.trainer.learning import Training

__all__ = [
    "layer_sparsity",
    "named_matrix",
    "sharing_lines",
    "sharing_matrix",
    "sparsity_lines",
    "usage_figures",
]


def usage_figures(training: Training) -> dict[str, Any]:
    """What the log says of the channels after each epoch: how many are unused, who shares them."""
    sparsity = layer_sparsity(training.net.units.table, training.alive())
    return {
        "mean_sparsity": float(np.mean(list(sparsity.values()))),
        "sparsity": sparsity,
        "sharing": named_matrix(training),
    }


def layer_sparsity(table: UnitTable, alive: np.ndarray) -> dict[str, float]:
    """Share of each layer's filters that no domain uses, by the layer's name.

    Args:
        alive: units that at least one domain uses, `[U]` bool.
    """
    return {
        layer.weight.removesuffix(".weight"): 1
        - len(table.kept(layer.weight, 0, layer.shape[0], alive)) / layer.shape[0]
        for layer in table.layers
    }


def sparsity_lines(sparsity: Mapping[str, float]) -> list[str]:
    """The layers' mean (the paper's "sparsity") and every layer's own, as lines of text."""
    mean = float(np.mean(list(sparsity.values())))
    layers = ", ".join(f"{name} {value:.0%}" for name, value in sparsity.items())
    wrapped = textwrap.wrap(layers, 100, initial_indent="  ", subsequent_indent="  ")
    return [f"unused filters, {mean:.1%} a layer:", *wrapped]


def sharing_matrix(switches: np.ndarray) -> np.ndarray:
    """Of the units that domain i uses, the share that domain j uses too: `[D, U]` → `[D, D]`."""
    on = (np.asarray(switches) > 0).astype(np.float64)
    shares: np.ndarray = (on @ on.T) / np.maximum(on.sum(axis=1, keepdims=True), 1)
    return shares


def sharing_lines(names: Sequence[str], matrix: np.ndarray) -> list[str]:
    """The matrix as lines of text, a domain's number standing for its name in the columns."""
    width = max(len("of the channels of"), *(len(name) for name in names)) + 3
    head = "of the channels of".ljust(width) + "".join(f"{i + 1:>6}" for i in range(len(names)))
    rows = [
        f"{i + 1:>2} {name}".ljust(width) + "".join(f"{value:>6.0%}" for value in row)
        for i, (name, row) in enumerate(zip(names, matrix, strict=True))
    ]
    return [f"{head}  chose", *rows]


def named_matrix(training: Training) -> dict[str, dict[str, float]]:
    names = [d.name for d in training.config.domains]
    matrix = sharing_matrix(training.choices().cpu().numpy())
    return {
        a: dict(zip(names, map(float, row), strict=True))
        for a, row in zip(names, matrix, strict=True)
    }

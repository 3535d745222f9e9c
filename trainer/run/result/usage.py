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
    "shared_by_all",
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


def sharing_matrix(*switches: np.ndarray) -> np.ndarray:
    """Of the switches that domain i has on, the share that domain j has too: `[D, D]`.

    Args:
        switches: `[D, U]`, in one part or in several.
    """
    rows = [(np.asarray(part) > 0).astype(np.float64) for part in switches]
    common = sum(on @ on.T for on in rows)
    shares: np.ndarray = common / np.maximum(np.diagonal(common)[:, None], 1)
    return shares


def shared_by_all(training: Training, alive: np.ndarray) -> float:
    """Share of the kept channels `alive` `[U]`, or of the slices in use, that all domains chose."""
    chosen = _chosen(training)
    if training.config.train.granularity == "channel":
        chosen, count = [chosen[0][:, alive]], int(alive.sum())
    else:
        count = sum(int(on.any(0).sum()) for on in chosen)
    return sum(int((on > 0).all(0).sum()) for on in chosen) / count


def sharing_lines(names: Sequence[str], matrix: np.ndarray, of: str = "channels") -> list[str]:
    """The matrix as lines of text, a domain's number standing for its name in the columns."""
    title = f"of the {of} of"
    width = max(len(title), *(len(name) for name in names)) + 3
    head = title.ljust(width) + "".join(f"{i + 1:>6}" for i in range(len(names)))
    rows = [
        f"{i + 1:>2} {name}".ljust(width) + "".join(f"{value:>6.0%}" for value in row)
        for i, (name, row) in enumerate(zip(names, matrix, strict=True))
    ]
    return [f"{head}  chose", *rows]


def named_matrix(training: Training) -> dict[str, dict[str, float]]:
    names = [d.name for d in training.config.domains]
    matrix = sharing_matrix(*_chosen(training))
    return {
        a: dict(zip(names, map(float, row), strict=True))
        for a, row in zip(names, matrix, strict=True)
    }


def _chosen(training: Training) -> list[np.ndarray]:
    """What each domain has on: of channels `[D, U]`, or of each layer's slices `[D, S]`."""
    adapter = training.net.adapter
    if adapter is None or training.config.train.granularity == "channel":
        return [training.choices().cpu().numpy()]
    return [bits.flatten(1).cpu().numpy() for bits in adapter.slices().values()]

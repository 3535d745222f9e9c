"""Two pictures of a bundle: which domains share channels, and widths before and after."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.base import read_json
from prunion.runtime.bundle import read_pack

__all__ = ["draw_sharing", "draw_widths"]


def draw_sharing(bundle: Path, picture: Path) -> None:
    """Share of each domain's channels that every other domain uses too, as a matrix."""
    plt = _pyplot()
    manifest = read_json(bundle / "manifest.json")
    names = [d["name"] for d in manifest["domains"]]
    used = np.stack([read_pack(bundle / d["pack"]).switches > 0 for d in manifest["domains"]])
    shared = (used[:, None] & used[None]).sum(-1) / used.sum(-1)[:, None]
    figure, axes = plt.subplots(figsize=(1.6 + 0.9 * len(names), 1.2 + 0.8 * len(names)))
    image = axes.imshow(shared, vmin=0, vmax=1, cmap="viridis")
    axes.set_xticks(range(len(names)), names, rotation=30, ha="right")
    axes.set_yticks(range(len(names)), names)
    for row, column in np.ndindex(*shared.shape):
        value = shared[row, column]
        colour = "black" if value > 0.6 else "white"
        axes.text(column, row, f"{value:.0%}", ha="center", va="center", color=colour)
    axes.set_title("of the row's channels, used by the column")
    figure.colorbar(image, ax=axes, fraction=0.046)
    figure.savefig(picture, dpi=120, bbox_inches="tight")
    plt.close(figure)


def draw_widths(manifest: Mapping[str, Any], picture: Path) -> None:
    """Output channels of every layer, before and after."""
    plt = _pyplot()
    before, after = zip(*manifest["widths"].values(), strict=True)
    places = np.arange(len(before))
    figure, axes = plt.subplots(figsize=(max(6.0, 0.18 * len(before)), 3.2))
    axes.bar(places, before, color="#d0d0d0", width=0.9, label="backbone")
    axes.bar(places, after, color="#2a6f97", width=0.9, label="kept")
    axes.set_xlabel("layer, from image to features")
    axes.set_ylabel("output channels")
    axes.legend(frameon=False)
    figure.savefig(picture, dpi=120, bbox_inches="tight")
    plt.close(figure)


def _pyplot() -> Any:
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    return pyplot

"""The sliced network as a torch model that reloads without the checkpoint: layout and tensors.

The slim layout, in `plan.json`, holds the backbone's graph and which of its channel units to keep;
`slim.safetensors` holds every tensor of the result. Nothing is pickled, no class is stored.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from prunion.exporter.slim.network import SlimNet, slim_network
from prunion.runtime.base import (
    new_folder,
    one_line,
    read_json,
    reason_of,
    sha256_file,
    unlisted,
    write_json,
)
from prunion.runtime.errors import CheckpointError, PrunionError
from prunion.trainer.config import BackboneConfig
from prunion.trainer.network import Checkpoint, rebuild_network

__all__ = ["load_slim", "save_slim", "write_slim"]

FORMAT_VERSION = 1
TENSORS, LAYOUT = "slim.safetensors", "plan.json"


def save_slim(
    folder: Path | str, slim: SlimNet, loaded: Checkpoint, alive: np.ndarray, *, force: bool = False
) -> None:
    """Write the folder whole or not at all; `load_slim` reads it back.

    Args:
        alive: units that `slim` keeps of the backbone's, `[U]` bool.
    """
    with new_folder(folder, force=force, wrote=_foreign) as temporary:
        write_slim(temporary, slim, loaded, alive)


def write_slim(folder: Path, slim: SlimNet, loaded: Checkpoint, alive: np.ndarray) -> None:
    """Write both files into a folder that is there."""
    from safetensors.torch import save_file

    tensors = {name: value.contiguous() for name, value in slim.state_dict().items()}
    tensors["switches"] = torch.from_numpy(np.ascontiguousarray(slim.used, np.uint8))
    save_file(tensors, folder / TENSORS, {"format": "prunion-slim"})
    table, config = loaded.net.units.table, loaded.config.to_json()
    layout = {
        "format_version": FORMAT_VERSION,
        "backbone": config["backbone"],
        "graph": loaded.net.graph,
        "size": list(loaded.config.input.size),
        "domains": [
            {"name": d["name"], "classes": list(d["classes"])} for d in loaded.meta["domains"]
        ],
        "units": {"count": table.count, "kept": np.flatnonzero(alive).tolist()},
        "kept": {  # for people and other tools; `units` says the same
            layer.weight: {
                str(axis): table.kept(layer.weight, axis, size, alive).tolist()
                for axis, size in enumerate(layer.shape)
                if (layer.weight, axis) in table.slots
            }
            for layer in table.layers
        },
        "tensors_sha256": sha256_file(folder / TENSORS),
    }
    write_json(folder / LAYOUT, layout)


def load_slim(folder: Path | str) -> SlimNet:
    """Rebuild the sliced network: its backbone, sliced as the layout says, with its tensors.

    Raises:
        CheckpointError: a file is missing, altered, of another version, or does not fit its graph.
    """
    folder = Path(folder)
    layout = _layout(folder)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        config = BackboneConfig(**layout["backbone"])
        classes = [len(d["classes"]) for d in layout["domains"]]
        graph, place = layout.get("graph"), f"graph in {folder}/{LAYOUT}"
        net = rebuild_network(config, layout["size"], classes, graph, place)
        alive = np.zeros(net.units.table.count, dtype=bool)
        if layout["units"]["count"] != len(alive):
            raise CheckpointError(
                f"{folder}: the backbone has {len(alive)} channel units here, the layout's had "
                f"{layout['units']['count']}: install the versions it was made with"
            )
        alive[layout["units"]["kept"]] = True
        tensors = load_file(folder / TENSORS)
        switches = tensors.pop("switches").to(torch.float32)
        net.switches.zero_()
        net.switches[:, torch.from_numpy(alive)] = switches
        slim = slim_network(net, alive)
        slim.load_state_dict(tensors)
    except CheckpointError:
        raise
    except (SafetensorError, PrunionError, OSError, KeyError, TypeError) as exc:
        raise CheckpointError(
            f"{folder}: the slim layout is damaged ({one_line(exc)}): save it again"
        ) from None
    except (RuntimeError, IndexError, ValueError) as exc:
        reason = reason_of(exc)
        raise CheckpointError(
            f"{folder}/{TENSORS} does not fit its slim layout: {reason}"
        ) from None
    return slim.eval()


def _foreign(folder: Path) -> str:
    return unlisted(folder, (TENSORS, LAYOUT))


def _layout(folder: Path) -> dict[str, Any]:
    for name in (LAYOUT, TENSORS):
        if not (folder / name).is_file():
            raise CheckpointError(f"{folder}/{name} is missing: give the folder that holds it")
    layout = read_json(folder / LAYOUT, CheckpointError)
    if not isinstance(layout, dict) or layout.get("format_version") != FORMAT_VERSION:
        raise CheckpointError(
            f"{folder}/{LAYOUT} is not of format_version {FORMAT_VERSION}: save it again"
        )
    if sha256_file(folder / TENSORS) != layout.get("tensors_sha256"):
        raise CheckpointError(
            f"{folder}/{TENSORS} is truncated or altered (its SHA-256 differs from the layout's): "
            "copy it again"
        )
    return layout

"""A finished network on disk: safetensors, JSON and the unit table."""

from __future__ import annotations

import logging
import platform
from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prunion.runtime.base import (
    new_folder,
    one_line,
    path_argument,
    read_json,
    reason_of,
    sha256_file,
    unlisted,
    write_json,
)
from prunion.runtime.bundle import Profile, UnitTable, read_profile, write_profile
from prunion.runtime.errors import CheckpointError, PrunionError
from prunion.trainer.config import (
    CHECKPOINT,
    CHECKPOINT_FILE,
    CHECKPOINT_FORMAT,
    GRAPH,
    LOG,
    STATE,
    RunConfig,
    check_checkpoint,
    runs_below,
)
from prunion.trainer.network.build import (
    adapt_network,
    count_as_bundled,
    finish_weights,
    merge_weights,
    rebuild_network,
)
from prunion.trainer.network.masked import DomainNet

__all__ = [
    "Checkpoint",
    "checkpoint_sha256",
    "counted_copy",
    "foreign_to_checkpoint",
    "load_checkpoint",
    "save_checkpoint",
    "versions",
]

log = logging.getLogger(__name__)

OF_A_RUN = (STATE, LOG)  # which has its checkpoint once it is done
FILES = (CHECKPOINT_FILE, "model.safetensors", "units.json", GRAPH, "profile.json")


@dataclass(frozen=True)
class Checkpoint:
    """A network read back from its folder.

    Attributes:
        meta: the content of `checkpoint.json`.
    """

    net: DomainNet
    config: RunConfig
    meta: Mapping[str, Any]


def save_checkpoint(
    folder: Path,
    net: DomainNet,
    config: RunConfig,
    facts: Mapping[str, Any],
    *,
    force: bool,
    profile: Profile | None = None,
) -> None:
    """Write the checkpoint folder whole or not at all; `facts` are added to `checkpoint.json`.

    The profile behind a latency budget goes with it: `profile`, or the run file's.
    """
    from safetensors.torch import save_file

    with new_folder(folder, force=force, wrote=foreign_to_checkpoint) as temporary:
        tensors = {k: v.detach().cpu().contiguous() for k, v in net.state_dict().items()}
        save_file(tensors, temporary / "model.safetensors")
        write_json(temporary / "units.json", net.units.table.to_json())
        write_json(temporary / GRAPH, net.graph)
        meta = {
            "format_version": CHECKPOINT_FORMAT,
            "config": config.to_json(),
            **facts,
            "seed": config.seed,
            "versions": versions(),
            "model_sha256": sha256_file(temporary / "model.safetensors"),
            "units_sha256": sha256_file(temporary / "units.json"),
            "graph_sha256": sha256_file(temporary / GRAPH),
        }
        if config.budget.kind == "latency":
            profile = read_profile(config.budget.profile) if profile is None else profile
            write_profile(temporary / "profile.json", profile)
            meta["profile_sha256"] = sha256_file(temporary / "profile.json")
        write_json(temporary / CHECKPOINT_FILE, meta)


def load_checkpoint(path: Path | str, *, merge: bool = True) -> Checkpoint:
    """Rebuild the masked network from a checkpoint folder, or from the run folder around it.

    Where the method gives its one domain weights of its own, they are the trunk's from here on; of
    several domains, and without `merge`, an adapter makes them.

    Raises:
        CheckpointError: the run is not finished, or files are missing, truncated, altered, of
            another version, or of a network whose channels are laid out differently now.
        InputError: `path` is none.
    """
    folder = path_argument("checkpoint", path)
    if (folder / CHECKPOINT / CHECKPOINT_FILE).is_file():
        folder = folder / CHECKPOINT
    if not (folder / CHECKPOINT_FILE).is_file():
        if any((folder / name).is_file() for name in OF_A_RUN):
            raise CheckpointError(
                f"the run in {path} is not finished: go on with `prunion train RUN.toml -o {path} "
                "--resume`"
            )
        if runs := runs_below(folder):
            raise CheckpointError(f"{path} holds {runs}")
        raise CheckpointError(
            f"{path} holds no checkpoint.json: give the folder that `prunion train` wrote"
        )
    meta = read_json(folder / CHECKPOINT_FILE, CheckpointError)
    check_checkpoint(folder, meta)
    try:
        config = RunConfig.from_checkpoint(meta["config"])
        classes = [len(d["classes"]) for d in meta["domains"]]
    except (KeyError, TypeError, PrunionError) as exc:
        raise CheckpointError(f"{folder}/checkpoint.json is damaged ({one_line(exc)})") from None
    if config.budget.kind == "latency":  # the one it was trained for, wherever the folder is now
        own = replace(config.budget, profile=str(folder / "profile.json"))
        config = replace(config, budget=own)
    graph = read_json(folder / GRAPH, CheckpointError) if "graph_sha256" in meta else None
    place = f"{folder}/{GRAPH}"
    net = rebuild_network(config.backbone, config.input.size, classes, graph, place)
    _check_units(folder, net)
    adapt_network(net, config.train)
    _load_tensors(folder, net)
    (merge_weights if merge else finish_weights)(net)
    return Checkpoint(net.eval(), config, meta)


def checkpoint_sha256(run: Path) -> str:
    """The SHA-256 of the network that a run's folder says it holds; "" where it says none."""
    path = run / CHECKPOINT / CHECKPOINT_FILE
    meta = read_json(path, CheckpointError) if path.is_file() else None
    return str(meta.get("model_sha256", "")) if isinstance(meta, dict) else ""


def counted_copy(net: DomainNet, config: RunConfig) -> DomainNet:
    """A network as a bundle holds it, to count what that stores; `net` stays as it is."""
    copy = rebuild_network(config.backbone, config.input.size, net.classes, net.graph, GRAPH)
    adapt_network(copy, config.train)
    copy.load_state_dict(net.state_dict())
    count_as_bundled(copy)
    return copy.eval()


def foreign_to_checkpoint(path: Path) -> str:
    """What at `path` no training wrote; "" if nothing."""
    return unlisted(path, FILES)


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    found = {"python": platform.python_version()}
    for package in ("prunion", "torch", "torchvision", "timm", "numpy", "onnx", "onnxruntime"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _check_units(folder: Path, net: DomainNet) -> None:
    stored = UnitTable.from_json(read_json(folder / "units.json", CheckpointError))
    if _layout(stored) != _layout(net.units.table):
        raise CheckpointError(
            f"{folder}: the backbone's channels are laid out differently in the installed torch, "
            "torchvision or timm than when it was trained; install the versions named in "
            "checkpoint.json"
        )
    if stored.layers != net.units.table.layers:
        log.info("%s: an earlier prunion counted other MACs; they are counted anew", folder)


def _layout(table: UnitTable) -> dict[str, Any]:
    """What its tensors must fit. An earlier prunion counted some layers at too few positions."""
    return {**table.to_json(), "layers": [(layer.weight, layer.shape) for layer in table.layers]}


def _load_tensors(folder: Path, net: DomainNet) -> None:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        net.load_state_dict(load_file(folder / "model.safetensors"))
    except (SafetensorError, RuntimeError, OSError) as exc:
        reason = reason_of(exc)
        raise CheckpointError(f"{folder}/model.safetensors does not fit: {reason}") from None

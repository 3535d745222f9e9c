"""Whether a network in hand is the one that the run in a folder began with."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from prunion.runtime.errors import CheckpointError
from prunion.trainer.backbone import LAYERS, given_name, unwrapped
from prunion.trainer.config import STATE
from prunion.trainer.run.folder.beginning import Beginning
from prunion.trainer.run.folder.facts import HANDED
from prunion.trainer.run.folder.snapshot import snapshot_facts

__all__ = ["check_network", "check_same_network", "network_note"]

log = logging.getLogger(__name__)


def network_note(model: nn.Module) -> dict[str, Any]:
    """What a run notes of a network in hand: its tensors' shapes, and a digest of their numbers."""
    named = _tensors(model)
    digest = hashlib.sha256()
    for value in named.values():
        try:
            plain = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
        except (RuntimeError, NotImplementedError):  # sparse, say: it is told by its shape
            continue
        digest.update(plain.numpy().data)
    shapes = {name: list(value.shape) for name, value in named.items()}
    return {"tensors": shapes, "digest": digest.hexdigest()}


def check_network(model: nn.Module, folder: Path, beginning: Beginning) -> None:
    """Refuse to go on with a run of another network than `model`, and say if its numbers differ.

    A network that is made anew has other numbers if its weights are random: the run has its own.

    Raises CheckpointError if tensors have other names or shapes than those of the run's network.
    """
    noted = snapshot_facts(folder / STATE).get(HANDED)
    if isinstance(noted, Mapping):
        now = network_note(model)
        other = _other(noted["tensors"], now["tensors"])
        if not other and noted["digest"] != now["digest"]:
            log.warning(
                "the network handed over has other weights or statistics than the one that %s "
                "began with: the run goes on with its own",
                folder,
            )
    else:  # begun by its name, or by an earlier prunion: some of the graph's names are ours
        held = {name: list(value.shape) for name, value in _tensors(model).items()}
        sure, unsure = _shapes_in(beginning.graph())
        other = _other_in_both(sure, held)
        if not other and (doubt := _other_in_both(unsure, held)):
            log.warning(
                "the run in %s noted nothing of its network, and the one handed over is another, "
                "%s, unless it computes that weight: the run goes on with its own",
                folder,
                doubt,
            )
    if other:
        raise CheckpointError(
            f"{folder} belongs to a run of another network than the one handed over, {other}: give "
            "the network that it was started with, choose another output, or start again with "
            "--force"
        )


def check_same_network(model: nn.Module, folder: Path, baseline: Path) -> None:
    """Refuse to hold a run against a baseline that began with other weights, or would; or warn.

    Either goes on with what it began with, if it has begun, and begins with `model` if not.

    Raises CheckpointError if the two differ.
    """
    run, other = (_digest(model, place) for place in (folder, baseline))
    if run is None or other is None:
        log.warning(
            "nobody noted what weights %s began with: whether a difference to its baseline is of "
            "pruning alone is not known",
            folder if run is None else baseline,
        )
    elif run != other:
        begun = (baseline / STATE).is_file()
        fix = f"remove {baseline}, and give" if begun else "give"
        raise CheckpointError(
            f"{folder} began with other weights or statistics than "
            f"{'its baseline' if begun else 'the network handed over has'}, so they would not "
            f"differ by pruning alone: {fix} the very network that the run began with (of random "
            "weights: by the same torch.manual_seed), or leave baseline out"
        )


def _digest(model: nn.Module, folder: Path) -> str | None:
    """That of the network which a run begins, or began, with; None where nobody noted it."""
    if not (folder / STATE).is_file():
        return str(network_note(model)["digest"])
    noted = snapshot_facts(folder / STATE).get(HANDED)
    return str(noted["digest"]) if isinstance(noted, Mapping) else None


def _tensors(model: nn.Module) -> dict[str, torch.Tensor]:
    """What makes a network that network: no buffer that is not in files, as `forward` may make."""
    model = unwrapped(model)
    beside = {
        f"{path}.{name}".lstrip(".")
        for path, part in model.named_modules()
        for name in part._non_persistent_buffers_set
    }
    both = [*model.named_parameters(), *model.named_buffers()]
    return {k: value for k, value in both if k not in beside and not is_lazy(value)}


def _shapes_in(graph: Any) -> tuple[dict[str, list[int]], dict[str, list[int]]]:
    """The tensors of a stored graph by the names that they had, and the weights of its layers.

    A weight that is computed is called as its layer's own is, and may have another shape.
    """
    listed = graph.get("nodes") if isinstance(graph, dict) else None
    nodes = [x for x in listed or () if isinstance(x, dict)]
    layers = [x for x in nodes if str(x.get("target")).startswith(LAYERS)]
    read = [x["args"][1:2] for x in layers if isinstance(x.get("args"), list)]
    weights = [x.get("node") for args in read for x in args if isinstance(x, dict)]
    sure: dict[str, list[int]] = {}
    unsure: dict[str, list[int]] = {}
    for node in nodes:
        if isinstance(node.get("tensor"), str) and isinstance(node.get("shape"), list):
            of = unsure if node.get("name") in weights else sure
            of[given_name(node["tensor"])] = node["shape"]
    return sure, unsure


def _other_in_both(before: Mapping[str, Sequence[int]], now: Mapping[str, Sequence[int]]) -> str:
    both = {name: shape for name, shape in before.items() if name in now}
    return _other(both, {name: now[name] for name in both})


def _other(before: Mapping[str, Sequence[int]], now: Mapping[str, Sequence[int]]) -> str:
    """The first tensor in which two networks differ; "" if there is none."""
    for name, shape in before.items():
        if name not in now:
            return f"which has no {name}"
        if list(shape) != list(now[name]):
            return f"whose {name} is {list(now[name])} and was {list(shape)}"
    return next((f"which has {name}, that had none" for name in now if name not in before), "")

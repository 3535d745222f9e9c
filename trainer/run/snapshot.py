"""The whole state of a run in one file, so that it can go on after a stop."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from prunion.runtime.base import replace_file
from prunion.runtime.errors import CheckpointError
from prunion.trainer.pruning import learner_state, restore_learner
from prunion.trainer.run.training import Training

__all__ = ["load_snapshot", "save_snapshot", "snapshot_bytes"]

FORMAT_VERSION = 4


def save_snapshot(path: Path, training: Training, facts: dict[str, Any]) -> None:
    """Write network, switches, optimiser and counters, atomically."""
    tensors = {f"net.{k}": v for k, v in training.net.state_dict().items()}
    tensors |= {f"switches.{k}": v for k, v in learner_state(training.learner).items()}
    tensors |= {f"average.{k}": v for k, v in training.average.state_dict().items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if training.net.switches.is_cuda:  # asking starts CUDA
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    plain: dict[str, dict[str, float]] = {}
    for index, state in training.optimiser.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimiser.{index}.{key}"] = value
            else:
                plain.setdefault(str(index), {})[key] = value
    meta = {
        "format_version": FORMAT_VERSION,
        "run": _fingerprint(training),
        "epoch": training.epoch,
        "step": training.step,
        "phase": training.phase,
        "uncut": training.uncut,
        "multipliers": training.pressure.values(),
        "optimiser": plain,
        "facts": facts,
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with replace_file(path) as temporary:
        save_file(tensors, temporary, {"prunion": json.dumps(meta)})


def snapshot_bytes(training: Training) -> tuple[int, int]:
    """About the bytes of a snapshot, and of the network in it, which a checkpoint holds."""
    net = sum(t.numel() * t.element_size() for t in training.net.state_dict().values())
    learnt = sum(p.numel() * p.element_size() for p in training.net.parameters())
    average = net if training.config.train.average else 0
    return net + 2 * learnt + average, net  # AdamW keeps two moments of each parameter


def load_snapshot(path: Path, training: Training) -> dict[str, Any]:
    """Put a run back to where `save_snapshot` left it; returns the facts stored with it.

    Raises:
        CheckpointError: the file is missing, damaged, or of a run with another configuration, other
            images, another teacher, another network to build on, or another profile of its device.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = json.loads((file.metadata() or {})["prunion"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as exc:
        raise CheckpointError(f"{path} cannot be read ({exc}): start the run again") from None
    if meta.get("format_version") != FORMAT_VERSION or meta.get("run") != _fingerprint(training):
        raise CheckpointError(
            f"{path} belongs to a run with another configuration, other images, another "
            "teacher or another prunion: resume with what it was started with, or start again "
            "with --force"
        )
    training.net.load_state_dict(_strip(tensors, "net."))
    restore_learner(training.learner, _strip(tensors, "switches."))
    average = _strip(tensors, "average.")
    training.average.load_state_dict(average, training.net.switches.device)
    _load_optimiser(training.optimiser, _strip(tensors, "optimiser."), meta["optimiser"])
    torch.set_rng_state(tensors["random.cpu"])
    if training.net.switches.is_cuda and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
    training.epoch, training.step = int(meta["epoch"]), int(meta["step"])
    training.phase = meta["phase"]
    training.uncut = float(meta["uncut"])
    training.pressure.restore(meta["multipliers"])
    return dict(meta["facts"])


def _load_optimiser(
    optimiser: torch.optim.Optimizer, tensors: dict[str, torch.Tensor], plain: dict[str, Any]
) -> None:
    state: dict[int, dict[str, Any]] = {int(i): dict(v) for i, v in plain.items()}
    for name, value in tensors.items():
        index, key = name.split(".", 1)
        state.setdefault(int(index), {})[key] = value
    optimiser.load_state_dict({**optimiser.state_dict(), "state": state})
    for parameter, moments in optimiser.state.items():
        for key in ("exp_avg", "exp_avg_sq"):  # fused AdamW wants them laid out as the parameter
            moments[key] = torch.empty_like(parameter).copy_(moments[key])


def _strip(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _fingerprint(training: Training) -> str:
    """What a run cannot go on without: its configuration, what it counts, its prices."""
    facts: dict[str, Any] = {
        "config": training.config.to_json(),
        "images": [training.batches.images, training.batches.digests],
        "classes": training.batches.classes,
        "teacher": training.teacher and training.teacher.digest,
        "cost": [training.budget.full, training.budget.allowed],
    }
    if training.origin:  # a plain run has none, and its fingerprint stays what it was
        facts["origin"] = training.origin
    if training.importance is not None:
        facts["importance"] = training.importance.tolist()
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()

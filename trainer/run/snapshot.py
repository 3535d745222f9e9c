"""The whole state of a run in one file, so that it can go on after a stop."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from prunion.runtime.base import json_of, reason_of, replace_file, shown
from prunion.runtime.errors import CheckpointError, PrunionError
from prunion.trainer.config import RunConfig, key_of
from prunion.trainer.learning import Training
from prunion.trainer.pruning import learner_state, restore_learner

__all__ = ["load_snapshot", "save_snapshot", "snapshot_bytes", "snapshot_facts", "snapshot_step"]

FORMAT_VERSION = 4
# Where and by how many a run is computed is free: the bits may differ by it, the run does not.
FREE = (("train", "workers"), ("train", "placement"), ("threads",), ("device",))
WORDS = {
    "images": "other images",
    "classes": "other classes",
    "teacher": "another teacher",
    "cost": "another network or other prices of its layers",
    "origin": "another checkpoint to build on",
    "importance": "another importance of the units",
}


def save_snapshot(
    path: Path, training: Training, facts: dict[str, Any], goes_on: int | None = None
) -> None:
    """Write network, switches, optimiser and counters, atomically.

    Args:
        goes_on: the step that is next, the first of an epoch, where it is not the present one.
    """
    tensors = {f"net.{k}": v for k, v in training.net.state_dict().items()}
    tensors |= {f"switches.{k}": v for k, v in learner_state(training.learner).items()}
    tensors |= {f"average.{k}": v for k, v in training.average.state_dict().items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if training.net.switches.is_cuda:  # asking starts CUDA
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    if training.net.switches.is_mps:
        tensors["random.mps"] = torch.mps.get_rng_state()
    plain: dict[str, dict[str, float]] = {}
    for index, state in training.optimiser.state_dict()["state"].items():
        for key, value in state.items():
            if isinstance(value, torch.Tensor):
                tensors[f"optimiser.{index}.{key}"] = value
            else:
                plain.setdefault(str(index), {})[key] = value
    meta = {
        "format_version": FORMAT_VERSION,
        "run": _fingerprint(facts_of := _facts(training)),
        "made_by": facts_of,
        "epoch": training.epoch if goes_on is None else goes_on // training.batches.steps_per_epoch,
        "step": training.step if goes_on is None else goes_on,
        "phase": training.phase,
        "uncut": training.uncut,
        "multipliers": training.pressure.values(),
        **({"loss_scale": training.loss_scale.state()} if training.loss_scale.works else {}),
        "optimiser": plain,
        "facts": facts,
    }
    tensors = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    with replace_file(path) as temporary:
        save_file(tensors, temporary, {"prunion": json.dumps(meta)})


def snapshot_step(path: Path) -> int:
    """The step after which a state was saved; 0 where it cannot be read, which loading tells."""
    try:
        return int(_meta(path)["step"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return 0


def snapshot_facts(path: Path) -> dict[str, Any]:
    """The facts that a state was saved with; none where it cannot be read, which loading tells."""
    try:
        return dict(_meta(path)["facts"])
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return {}


def _meta(path: Path) -> Any:
    with safe_open(path, framework="pt") as file:
        return json_of((file.metadata() or {})["prunion"])


def snapshot_bytes(training: Training) -> tuple[int, int]:
    """About the bytes of a snapshot, and of the network in it, which a checkpoint holds."""
    net = sum(t.numel() * t.element_size() for t in training.net.state_dict().values())
    learnt = sum(p.numel() * p.element_size() for p in training.net.parameters())
    average = net if training.config.train.average else 0
    return net + 2 * learnt + average, net  # AdamW keeps two moments of each parameter


def load_snapshot(path: Path, training: Training, *, any_limit: bool = False) -> dict[str, Any]:
    """Put a run back to where `save_snapshot` left it; returns the facts stored with it.

    Args:
        any_limit: also of a run with another limit of the budget, as up to the end of warm-up.

    Raises:
        CheckpointError: the file is missing, damaged, or of a run with another configuration, other
            images, another teacher, another network to build on, or another profile of its device.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = json_of((file.metadata() or {})["prunion"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as exc:
        reason = reason_of(exc)
        raise CheckpointError(f"{path} cannot be read ({reason}): start the run again") from None
    if other := _other(meta, training, any_limit):
        raise CheckpointError(
            f"{path} belongs to a run with {other}: resume with what it was started with, or start "
            "again with --force"
        )
    training.net.load_state_dict(_strip(tensors, "net."))
    restore_learner(training.learner, _strip(tensors, "switches."))
    average = _strip(tensors, "average.")
    training.average.load_state_dict(average, training.net.switches.device)
    _load_optimiser(training.optimiser, _strip(tensors, "optimiser."), meta["optimiser"])
    torch.set_rng_state(tensors["random.cpu"])
    if training.net.switches.is_cuda and "random.cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random.cuda"])
    if training.net.switches.is_mps and "random.mps" in tensors:
        torch.mps.set_rng_state(tensors["random.mps"])
    training.epoch, training.step = int(meta["epoch"]), int(meta["step"])
    training.phase = meta["phase"]
    training.uncut = float(meta["uncut"])
    training.pressure.restore(meta["multipliers"])
    training.loss_scale.restore(meta.get("loss_scale"))
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
        # Fused AdamW wants them laid out as the parameter.
        for key in {"exp_avg", "exp_avg_sq", "momentum_buffer"} & moments.keys():
            moments[key] = torch.empty_like(parameter).copy_(moments[key])


def _strip(tensors: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def _other(meta: Any, training: Training, any_limit: bool) -> str:
    """In what the stored run is another one than this, with both values; "" if it may go on."""
    if not isinstance(meta, dict) or meta.get("format_version") != FORMAT_VERSION:
        return "another prunion"
    facts, stored = _facts(training), meta.get("made_by")
    if not isinstance(stored, dict):  # of an earlier prunion, which kept the fingerprint alone
        same = meta.get("run") == _fingerprint(facts)
        return "" if same else "another configuration, other images or another teacher"
    now = json.loads(json.dumps(facts))
    if any_limit:  # what is allowed follows from it
        limit = {"limit": now["config"]["budget"]["limit"]}
        config = stored.get("config") or {}
        config = {**config, "budget": {**config.get("budget", {}), **limit}}
        cost = [*stored.get("cost", [])[:1], *now["cost"][1:]]
        stored = {**stored, "config": config, "cost": cost}
    for key, before, after in _differences(_today(stored.get("config")), now["config"], ()):
        return f"another configuration, for {key} was {shown(before)} and is {shown(after)}"
    for key, what in WORDS.items():
        before, after = stored.get(key), now.get(key)
        if before != after:
            return f"{what} (was {shown(before)}, is {shown(after)})"
    return ""


def _today(config: Any) -> Any:
    """A stored configuration as this prunion writes it: keys that it is older than, by default."""
    try:
        return json.loads(json.dumps(RunConfig.from_json(config).to_json()))
    except PrunionError:
        return config


def _differences(before: Any, after: Any, place: tuple[str, ...]) -> Iterator[tuple[str, Any, Any]]:
    """Each key of the run file in which two runs differ, but for those that change no result."""
    if isinstance(before, dict) and isinstance(after, dict):
        for key in dict.fromkeys((*before, *after)):
            if (*place, key) not in FREE:
                yield from _differences(before.get(key), after.get(key), (*place, key))
    elif before != after:
        yield key_of(".".join(place[:-1]), place[-1] if place else "config"), before, after


def _facts(training: Training) -> dict[str, Any]:
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
    return facts


def _fingerprint(facts: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()

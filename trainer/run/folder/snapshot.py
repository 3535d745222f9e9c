"""The whole state of a run in one file, so that it can go on after a stop."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from prunion.runtime.base import json_of, reason_of, replace_file, shown
from prunion.runtime.errors import CheckpointError
from prunion.runtime.images import same_images
from prunion.trainer.config import changed_paths, key_of, lacks_shape, set_option, todays_config
from prunion.trainer.cost import profile_note
from prunion.trainer.learning import Training
from prunion.trainer.pruning import learner_state, restore_learner
from prunion.trainer.run.folder.recounted import recounted, tell_count
from prunion.trainer.score import BESIDE

__all__ = [
    "load_snapshot",
    "run_facts",
    "save_snapshot",
    "snapshot_bytes",
    "snapshot_facts",
    "snapshot_step",
]

log = logging.getLogger(__name__)

FORMAT_VERSION = 4
WORDS = {"images": "other images", "classes": "other classes", **BESIDE}


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
        "made_by": run_facts(training),
        "epoch": training.epoch if goes_on is None else goes_on // training.batches.steps_per_epoch,
        "step": training.step if goes_on is None else goes_on,
        "phase": training.phase,
        "uncut": training.uncut,
        "fixed_at": training.norms.fixed_at,
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
    groups = training.optimiser.param_groups
    speeds = [p for g in groups if g["sgd"] or g.get("matrices") for p in g["params"]]
    once = sum(p.numel() * p.element_size() for p in speeds)  # AdamW keeps two of each
    return net + 2 * learnt - once + average, net


def load_snapshot(path: Path, training: Training, *, any_limit: bool = False) -> dict[str, Any]:
    """Put a run back to where `save_snapshot` left it; returns the facts stored with it.

    Args:
        any_limit: also of a run with another limit of the budget, as up to the end of warm-up.

    Raises:
        CheckpointError: the file is missing, damaged, or of a run with another configuration, other
            images, another teacher, another network to build on, another profile of its device, or
            of one that cuts by an earlier prunion's count of adapters.
    """
    try:
        with safe_open(path, framework="pt") as file:
            meta = json_of((file.metadata() or {})["prunion"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as exc:
        fix = "start the run again"
        if training.behind[0]:  # what it settled with has a state of its own
            fix = "remove it and go on with --resume, which thins the domains anew"
        raise CheckpointError(f"{path} cannot be read ({reason_of(exc)}): {fix}") from None
    if other := _other(meta, training, any_limit):
        raise CheckpointError(
            f"{path} belongs to a run with {other}: resume with what it was started with, or start "
            "again with --force"
        )
    if recounted(meta["made_by"], training, any_limit):
        tell_count(path, meta["made_by"]["cost"][0], training)
    if training.processes.first and (names := _untold(meta, training)):
        # Refused, a run that nobody touched would be lost.
        log.warning(
            "%s is of an earlier prunion, which noted too little of the training images of %s to "
            "tell them from others of as many: it goes on with those that are there",
            path,
            ", ".join(names),
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
    training.norms.fixed_at = int(meta.get("fixed_at", 0))  # an earlier prunion's did not count
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
    facts, stored = run_facts(training), meta.get("made_by")
    if not isinstance(stored, dict):
        return "settings that its prunion, an earlier one, did not write down"
    now = json.loads(json.dumps(facts))
    if any_limit:  # what is allowed follows from it
        limit = {"limit": now["config"]["budget"]["limit"]}
        config = stored.get("config") or {}
        config = {**config, "budget": {**config.get("budget", {}), **limit}}
        cost = [*stored.get("cost", [])[:1], *now["cost"][1:]]
        stored = {**stored, "config": config, "cost": cost}
    shapes = {part.geometric for part in (training.schedule, *training.schedule.turns)}
    if lacks_shape(stored.get("config")) and True in shapes and meta.get("phase") != "settle":
        return "a linear ramp, as all were when it began (--set train.ramp_shape=linear)"
    if training.origin and stored.get("origin") != training.origin:  # its network is in the config
        return f"{WORDS['origin']} (was {shown(stored.get('origin'))}, is {training.origin!r})"
    had, has = (list((x.get("config") or {}).get("domains", {})) for x in (stored, now))
    if set(had) != set(has):
        return f"other domains (was {', '.join(had)}, is {', '.join(has)})"
    for path, before, after in changed_paths(todays_config(stored.get("config")), now["config"]):
        key = key_of(".".join(path[:-1]), path[-1] if path else "config")
        told = f"another configuration, for {key} was {shown(before)} and is {shown(after)}"
        return told + ("" if training.origin else _back(path, before))  # which a later domain lacks
    # Everything of a domain lies by its place: another's weights would answer for it, untold.
    if had != has:
        return f"its domains in another order (was {', '.join(had)}, is {', '.join(has)})"
    for key, what in WORDS.items():
        before, after = stored.get(key), now.get(key)
        if key == "profile" and before is None:
            continue  # an earlier prunion noted the cost alone
        if key == "images":
            if _other_images(before, after):
                return f"{what} ({_told_images(before, after, training.names)})"
        elif before != after and not (key == "cost" and recounted(stored, training, any_limit)):
            return f"{what} (was {shown(before)}, is {shown(after)})"
    if len(meta["multipliers"]) != len(training.pressure.values()):
        sharing = now["config"]["train"]["sharing"]
        return f"its budget held in another way, by an earlier prunion (sharing = {sharing!r})"
    return ""


def _back(path: tuple[str, ...], before: Any) -> str:
    """The option that gives a key of the run its value of before, where one can."""
    if not path or not isinstance(before, (str, int, float, list)):
        return ""
    return f" (--set {set_option(path, before)})"


def _other_images(before: Any, after: Any) -> bool:
    """Whether training images, counts and digests by domain, certainly are others."""
    if not isinstance(before, list) or before[:1] != after[:1]:
        return True
    return any(same_images(*pair) is False for pair in zip(before[1], after[1], strict=True))


def _told_images(before: Any, after: Any, names: Sequence[str]) -> str:
    """Which domains' training images are others, and how many there were."""
    if not isinstance(before, list) or [len(x) for x in before] != [len(x) for x in after]:
        return "its prunion, an earlier one, did not note which"
    told = []
    parts = zip(names, before[0], after[0], before[1], after[1], strict=True)
    for name, was, now, *digests in parts:
        if was != now:
            told.append(f"[domains.{name}] had {was} training images and has {now}")
        elif same_images(*digests) is False:
            told.append(f"[domains.{name}] has other training images, as many as before")
    return "; ".join(told)


def _untold(meta: Any, training: Training) -> list[str]:
    """The domains whose training images a state does not tell from others of as many."""
    stored = meta["made_by"]["images"][1]
    pairs = zip(training.names, stored, training.batches.digests, strict=True)
    return [name for name, before, now in pairs if same_images(before, now) is None]


def run_facts(training: Training) -> dict[str, Any]:
    """What a run cannot go on without: its configuration, what it counts, its prices."""
    facts: dict[str, Any] = {
        "config": training.config.to_json(),
        "images": [training.batches.images, training.batches.digests],
        "classes": training.batches.classes,
        "teacher": training.teacher and training.teacher.digest,
        "cost": [training.budget.full, training.budget.allowed],
    }
    if training.budget.pricer.profile is not None:
        facts["profile"] = profile_note(training.budget.pricer.profile)
    if training.origin:  # a plain run has none
        facts["origin"] = training.origin
    if training.importance is not None:
        facts["importance"] = training.importance.tolist()
    return facts

"""Weights from a file as people have them: unwrapped, their names' prefix taken off, checked."""

from __future__ import annotations

import argparse
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunion.runtime.base import is_pipe, reason_of
from prunion.runtime.errors import ConfigError
from prunion.trainer.config import BackboneConfig

__all__ = ["load_weights", "match_by_order", "read_weights"]

# Where training scripts keep the network in their checkpoint; averaged weights come first, since
# they are the ones such scripts evaluate and publish.
WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema"),
    *("state_dict", "model_state_dict", "model", "module", "network", "net", "weights"),
)
DEEPEST = 4
# What tensors are called by PyTorch, Keras, MXNet and JAX; the longer endings come first.
ROLES = {
    **dict.fromkeys(("running_mean", "moving_mean", "mean"), "running mean"),
    **dict.fromkeys(
        ("running_var", "moving_variance", "moving_var", "variance", "var"), "running variance"
    ),
    **dict.fromkeys(("weight", "gamma", "kernel", "scale"), "weight or scale"),
    **dict.fromkeys(("bias", "beta", "shift", "offset"), "bias or shift"),
}
log = logging.getLogger(__name__)
State = dict[str, torch.Tensor]
Named = tuple[str, torch.Tensor]


def read_weights(path: Path | str) -> State:
    """The network's tensors in a .safetensors file or a checkpoint of `torch.save`, by name.

    A checkpoint may hold them as `{"model": …}`, `{"state_dict": …}`, `{"model_ema": …}` and the
    like, beside an optimiser or an `argparse.Namespace`; what is taken is logged. Nothing but
    tensors, containers and that namespace is ever unpickled.

    Raises ConfigError if the file cannot be read or holds no tensors.
    """
    path = Path(path)
    if is_pipe(path):
        raise ConfigError(f"[backbone] weights: {path} is a pipe or a device: give a file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # each reader has its own errors
        raise ConfigError(
            f"[backbone] weights: {path} cannot be read ({_reason(exc)}); give a .safetensors "
            "file, or a file of torch.save that holds tensors alone"
        ) from exc
    return _unwrapped(value, path)


def _reason(exc: Exception) -> str:
    """Why a file cannot be read; torch's own advice, to unpickle what is in it, is none of ours."""
    if type(exc).__name__ == "UnpicklingError":  # nothing here imports its module
        return "it is no file of torch.save, or holds more than tensors"
    return reason_of(exc)


def _unwrapped(value: Any, path: Path) -> State:
    taken: list[str] = []
    while len(taken) <= DEEPEST and isinstance(value, Mapping):
        if _is_state(value):
            if taken:
                log.info("%s: the weights under %s are used", path, " → ".join(taken))
            return {k: v for k, v in value.items() if isinstance(v, torch.Tensor)}
        key = next((k for k in WRAPPERS if isinstance(value.get(k), Mapping)), None)
        if key is None:
            break
        taken.append(repr(key))
        value = value[key]
    held = f" but {', '.join(map(repr, list(value)[:6]))}" if isinstance(value, Mapping) else ""
    raise ConfigError(
        f"[backbone] weights: {path} holds no state dict of tensors{held}; save "
        "model.state_dict() alone"
    )


def _is_state(value: Mapping[Any, Any]) -> bool:
    """Whether names lead to tensors; a counter beside them, as in averages, does no harm."""
    tensors = sum(isinstance(v, torch.Tensor) for v in value.values())
    plain = all(isinstance(v, torch.Tensor | int | float | str | None) for v in value.values())
    return tensors > 0 and plain and all(isinstance(k, str) for k in value)


def match_by_order(config: BackboneConfig, state: Mapping[str, torch.Tensor], own: State) -> State:
    """Give the file's tensors the network's names, pairing them in order and checking shapes.

    BatchNorm's four have one shape: where the names of a layer's tensors tell what each is, they
    are paired by that. Raises ConfigError at the first pair whose shapes differ or whose names
    contradict each other, or if the file holds too few.
    """
    wanted = _parameters(own)
    given = _parameters(state)
    matched = {}
    for (name, target), (theirs, value) in _pairs(wanted, given):
        if _role(name) and _role(theirs) and _role(name) != _role(theirs):
            raise ConfigError(
                f'[backbone] match = "order": {name} is a {_role(name)}, the file\'s {theirs} in '
                f"its place a {_role(theirs)}; save the tensors in the network's order"
            )
        if target.shape != value.shape:
            raise ConfigError(
                f'[backbone] match = "order": {name} has shape {tuple(target.shape)}, the file\'s '
                f"{theirs} has {tuple(value.shape)}; the file belongs to another network"
            )
        matched[name] = value
    if len(matched) < len(wanted):
        raise ConfigError(
            f"[backbone] weights: {config.weights} holds {len(matched)} tensors, "
            f"{config.name} needs {len(wanted)}"
        )
    return matched


def _pairs(wanted: State, given: State) -> Iterator[tuple[Named, Named]]:
    """Both in order; those of one layer by what they are, where both sides' names tell it."""
    rest = list(given.items())
    for _, group in groupby(wanted.items(), key=lambda item: _layer(item[0])):
        ours = list(group)
        theirs, rest = rest[: len(ours)], rest[len(ours) :]
        roles = [_role(name) for name, _ in ours]
        by_role = {_role(name): (name, value) for name, value in theirs}
        alone = len({_layer(name) for name, _ in theirs}) == 1
        told = len(by_role) == len(roles) == len(theirs)  # each role once
        if alone and told and None not in roles and by_role.keys() == set(roles):
            theirs = [by_role[role] for role in roles]
        yield from zip(ours, theirs, strict=False)


def _role(name: str) -> str | None:
    """What a tensor is by the last part of its name; None if that tells nothing."""
    last = re.split(r"[./]", name)[-1].removesuffix(":0")
    ends = (end for end in ROLES if last == end or last.endswith(f"_{end}"))
    return ROLES.get(next(ends, ""))


def _layer(name: str) -> str:
    """A tensor's name without what the tensor is."""
    for end in ROLES:
        if name.removesuffix(":0").endswith(end):
            return name.removesuffix(":0").removesuffix(end)
    return name


def load_weights(
    config: BackboneConfig,
    module: nn.Module,
    state: State,
    stored: Collection[str] | None = None,
) -> None:
    """Copy the file's tensors into `module`, found by name behind whatever prefix they share.

    Args:
        stored: names that the network's own state dict has; other buffers are constants, and stay.

    Raises ConfigError if one is missing or has another shape.
    """
    wanted = _parameters(module.state_dict())
    if stored is not None:
        constant = {name for name, _ in module.named_buffers()} - set(stored)
        wanted = {name: value for name, value in wanted.items() if name not in constant}
    prefix = _prefix(config, wanted, state)
    for name, target in wanted.items():
        if prefix + name not in state:
            raise ConfigError(
                f"[backbone] weights: {config.weights} holds no {prefix}{name}; if only its key "
                'names differ, set [backbone] match = "order"; if it stops earlier, set cut'
            )
        value = state[prefix + name]
        if value.shape != target.shape:
            raise ConfigError(
                f"[backbone] weights: {prefix}{name} has shape {tuple(value.shape)} in "
                f"{config.weights}, {config.name} needs {tuple(target.shape)}"
            )
    with torch.no_grad():
        for name, target in wanted.items():
            target.copy_(state[prefix + name])


def _prefix(config: BackboneConfig, wanted: Iterable[str], state: Iterable[str]) -> str:
    """What stands before the network's names in the file: `module.`, `model._orig_mod.`, nothing.

    The prefix behind which most names are found. Two networks in one file (a student and its
    teacher) are for the user to tell apart.
    """
    names, held = set(wanted), list(state)
    found: Counter[str] = Counter()
    for key in held:
        parts = key.split(".")
        for start in range(len(parts)):
            if ".".join(parts[start:]) in names:
                found["".join(f"{part}." for part in parts[:start])] += 1
    if not found:
        return ""
    most = max(found.values())
    best = [prefix for prefix, count in found.items() if count == most]
    if "" in best:
        return ""
    if len(best) > 1:
        raise ConfigError(
            f"[backbone] weights: {config.weights} holds several networks, under "
            f"{' and '.join(sorted(best)[:4])}: save the state dict of one of them"
        )
    log.info("%s: names begin with %s, which is taken off", config.weights, best[0])
    return best[0]


def _parameters(state: Mapping[str, torch.Tensor]) -> State:
    return {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}

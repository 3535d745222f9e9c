"""Weights from a file as people have them: unwrapped, their names' prefix taken off, checked."""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prunion.runtime.base import reason_of
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
log = logging.getLogger(__name__)
State = dict[str, torch.Tensor]


def read_weights(path: Path | str) -> State:
    """The network's tensors in a .safetensors file or a checkpoint of `torch.save`, by name.

    A checkpoint may hold them as `{"model": …}`, `{"state_dict": …}`, `{"model_ema": …}` and the
    like, beside an optimiser or an `argparse.Namespace`; what is taken is logged. Nothing but
    tensors, containers and that namespace is ever unpickled.

    Raises ConfigError if the file cannot be read or holds no tensors.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            value = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as exc:  # each reader has its own errors
        raise ConfigError(
            f"[backbone] weights: {path} cannot be read ({reason_of(exc)}); give a .safetensors "
            "file, or a file of torch.save that holds tensors alone"
        ) from exc
    return _unwrapped(value, path)


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

    Raises ConfigError at the first pair whose shapes differ, or if the file holds too few.
    """
    wanted = _parameters(own)
    given = _parameters(state)
    matched = {}
    pairs = zip(wanted.items(), given.items(), strict=False)
    for (name, target), (theirs, value) in pairs:
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

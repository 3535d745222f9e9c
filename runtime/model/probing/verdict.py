"""What was found of a backend's answers to one graph, remembered beside the plans."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from prunion.runtime.backends import SessionOptions
from prunion.runtime.base import (
    cache_folder,
    installed_version,
    is_number,
    machine_facts,
    read_json,
    write_json,
)
from prunion.runtime.errors import PrunionError

__all__ = ["Verdict", "load_verdict", "save_verdict", "verdict_key"]

log = logging.getLogger(__name__)

FORMAT_VERSION = 1
# What decides the kernels of a GPU and stands in no version of ONNX Runtime or OpenVINO.
LIBRARIES = ("nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "tensorrt", "tensorrt-rtx")
SWITCHES = ("NVIDIA_TF32_OVERRIDE",)


@dataclass(frozen=True)
class Verdict:
    """How far a session was off, `max |Δ| / max |reference|`, and what speaks against it.

    `error` is infinite for a wrong shape or a value that is not finite; `problem` is empty where
    nothing speaks against the session.
    """

    error: float
    problem: str = ""


def verdict_key(graph: list[Any], compiled: list[Any], options: SessionOptions) -> str:
    """Hex name of a verdict: all that can change what was compiled, or what it is held to.

    Args:
        graph: what tells the graph and its form from others, as JSON values.
        compiled: the same of the library, the device and what was compiled.
    """
    facts = machine_facts(options.threads)
    del facts["load_average"]
    value = [
        FORMAT_VERSION,
        graph,
        compiled,
        [dict(options.provider_options), dict(options.entries), options.spare_memory],
        facts,
        {name: installed_version(name) for name in LIBRARIES},
        {name: os.environ.get(name) for name in SWITCHES},
        platform.node(),
    ]
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def load_verdict(key: str, folder: str = "verdicts") -> Verdict | None:
    """A remembered verdict, None if there is none or it is damaged."""
    try:
        value: Any = read_json(_place(key, folder))
        problem, error = value["problem"], value["error"]
        known = value["format_version"] == FORMAT_VERSION and isinstance(problem, str)
    except (PrunionError, OSError, KeyError, TypeError, ValueError):
        return None
    if not known or not (error is None or is_number(error)):
        return None
    return Verdict(math.inf if error is None else float(error), problem)


def save_verdict(key: str, verdict: Verdict, folder: str = "verdicts") -> None:
    """Remember a verdict; a folder that cannot be written only costs asking again, and is told."""
    error = verdict.error if math.isfinite(verdict.error) else None
    value = {"format_version": FORMAT_VERSION, "error": error, "problem": verdict.problem}
    try:
        write_json(_place(key, folder), value)
    except OSError:
        _tell(str(cache_folder()))


@cache
def _tell(place: str) -> None:
    """Once for each folder in a process: nothing else says why every start takes its time."""
    log.warning(
        "what was found of a graph's answers cannot be kept in %s, and is asked again by every "
        "process: set PRUNION_CACHE to a folder that can be written",
        place,
    )


def _place(key: str, folder: str) -> Path:
    return cache_folder() / folder / f"{key}.json"

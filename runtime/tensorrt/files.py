"""Engine files beside their keys: found again, checked before use, stale when anything changed."""

from __future__ import annotations

import hashlib
import json
from contextlib import suppress
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from prunion.runtime.base import (
    check_output,
    read_json,
    replace_file,
    sha256_file,
    shown,
    write_json,
)
from prunion.runtime.bundle import Bundle
from prunion.runtime.errors import EngineError, InputError
from prunion.runtime.tensorrt.key import EngineKey

__all__ = [
    "check_engine_output",
    "check_outside",
    "check_runs_on",
    "engine_name",
    "key_place",
    "read_engine",
    "read_fitting",
    "staleness",
    "write_engine",
]

FORMAT_VERSION = 1
DAMAGED = "the engine file is truncated or altered"
# What a given engine must share with the bundle; its sizes and options are its own.
MUST_FIT = ("target", "library_version", "graph_sha256", "trunk_hash", "precision")


def engine_name(key: EngineKey) -> str:
    """A file name that is another for every other key."""
    digest = hashlib.sha256(json.dumps(asdict(key), sort_keys=True).encode()).hexdigest()
    return f"{key.target}.{key.precision}.{digest[:16]}.engine"


def key_place(path: Path) -> Path:
    """Where an engine's key lies."""
    return path.with_name(path.name + ".json")


def write_engine(path: Path, key: EngineKey, engine: bytes) -> Path:
    """Write the engine, and its key with the engine's own hash; returns the key's place.

    Two files do not change in one step. While the engine of a key is replaced that key also holds
    the one before, so that whoever stops it in between leaves the old engine or the new.
    """
    digest = hashlib.sha256(engine).hexdigest()
    value = {"format_version": FORMAT_VERSION, **asdict(key), "engine_sha256": digest}
    with suppress(EngineError, OSError):
        write_json(key_place(path), {**value, "before": _read_key(path)})
    with replace_file(path) as temporary:
        temporary.write_bytes(engine)
    write_json(key_place(path), value)
    return key_place(path)


def check_engine_output(bundle: Bundle, path: Path, *, force: bool) -> None:
    """Raise PrunionError if an engine and its key may not be written at `path`, as
    `check_output` does, InputError if it is inside the bundle."""
    check_outside(bundle, path)
    for place in (path, key_place(path)):
        check_output(place, force=force, wrote=lambda _: _no_engine(path))


def check_outside(bundle: Bundle, path: Path) -> None:
    """Raise InputError if `path` is inside a bundle, where every file is fixed."""
    if path.resolve().is_relative_to(bundle.path.resolve()):
        raise InputError(f"{path} is inside the bundle, whose files are fixed: choose another -o")


def _no_engine(path: Path) -> str:
    """Why an engine and its key are none that `write_engine` wrote, of any version."""
    if path.is_dir() or key_place(path).is_dir():
        return "is a folder"
    try:
        own = "engine_sha256" in read_json(key_place(path), EngineError)
    except (EngineError, TypeError):
        own = False
    return "" if own else f"is no engine with its key, {key_place(path).name}, beside it"


def staleness(path: Path, key: EngineKey) -> str:
    """Why the engine at `path` must be built (again) for `key`; empty if it may be used."""
    try:
        if not path.is_file() or not key_place(path).is_file():
            return "there is no engine yet"
        found = _read_key(path)
        if reason := _difference(found, key, _names()):
            return reason
        return "" if sha256_file(path) == found.get("engine_sha256") else DAMAGED
    except (EngineError, OSError) as exc:
        return str(exc)


def read_engine(path: Path | str, key: EngineKey) -> bytes:
    """The engine's bytes. Raises EngineError if it is corrupt or was built from something else."""
    path = Path(path)
    found = _read_key(path)
    return _read_bytes(path, found, _difference(found, key, _names()))


def read_fitting(path: Path | str, wanted: EngineKey) -> tuple[bytes, EngineKey]:
    """The bytes and the key of an engine, if it was built from what `wanted` says.

    The sizes and options of `wanted` do not matter, nor do its GPUs: see `check_runs_on`. Raises
    EngineError.
    """
    path = Path(path)
    found = _read_key(path)
    engine = _read_bytes(path, found, _difference(found, wanted, MUST_FIT))
    return engine, _to_key(path, found)


def check_runs_on(path: Path | str, key: EngineKey, sm: int) -> None:
    """Raise EngineError unless the engine of `key` was built for the GPU generation `sm`."""
    if sm not in key.sms:
        built = ", ".join(map(str, key.sms)) or "no GPU in particular"
        raise EngineError(
            f"{path} was built for sm {built}, this GPU is sm {sm}: run `prunion build` here"
        )


def _read_bytes(path: Path, found: dict[str, Any], reason: str) -> bytes:
    """The engine, read and hashed once, unless there is a `reason` against it already."""
    engine = b"" if reason else path.read_bytes()
    if not reason and hashlib.sha256(engine).hexdigest() != found.get("engine_sha256"):
        reason = DAMAGED
    if reason:
        raise EngineError(f"{path} cannot be used ({reason}): run `prunion build` again")
    return engine


def _difference(found: dict[str, Any], wanted: EngineKey, names: tuple[str, ...]) -> str:
    """The first of `names` in which the key that was read is another; empty if there is none."""
    # As JSON gives it back: tuples have become lists.
    plain = json.loads(json.dumps(asdict(wanted)))
    for name in names:
        if found.get(name) != plain[name]:
            return f"{name} was {shown(found.get(name))}, is {shown(plain[name])}"
    return ""


def _names() -> tuple[str, ...]:
    return tuple(field.name for field in fields(EngineKey))


def _read_key(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise EngineError(f"{path} does not exist: run `prunion build` on this machine")
    if not key_place(path).is_file():
        raise EngineError(f"{key_place(path)} is missing: copy it beside the engine, or build anew")
    value = read_json(key_place(path), EngineError)
    if not isinstance(value, dict) or value.get("format_version") != FORMAT_VERSION:
        raise EngineError(f"{key_place(path)} is of another version: run `prunion build` again")
    before = value.pop("before", None)
    if isinstance(before, dict) and sha256_file(path) != value.get("engine_sha256"):
        return before
    return value


def _to_key(path: Path, found: dict[str, Any]) -> EngineKey:
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if k in _names()
    }
    try:
        key = EngineKey(**values)
        if not all(isinstance(sm, int) for sm in key.sms):
            raise TypeError
    except TypeError:
        raise EngineError(f"{key_place(path)} is incomplete: run `prunion build` again") from None
    return key

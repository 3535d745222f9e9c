"""Engine files beside their keys: found again, checked before use, stale when anything changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from prunion.runtime.base.files import read_json, replace_file, sha256_file, write_json
from prunion.runtime.errors import EngineError
from prunion.runtime.tensorrt.key import EngineKey

__all__ = ["check_fits", "engine_name", "key_place", "read_engine", "staleness", "write_engine"]

FORMAT_VERSION = 1


def engine_name(key: EngineKey) -> str:
    """A file name that is another for every other key."""
    digest = hashlib.sha256(json.dumps(asdict(key), sort_keys=True).encode()).hexdigest()
    return f"{key.target}.{key.precision}.{digest[:16]}.engine"


def key_place(path: Path) -> Path:
    """Where an engine's key lies."""
    return path.with_name(path.name + ".json")


def write_engine(path: Path, key: EngineKey, engine: bytes) -> Path:
    """Write the engine, then its key with the engine's own hash; returns the key's place."""
    with replace_file(path) as temporary:
        temporary.write_bytes(engine)
    digest = hashlib.sha256(engine).hexdigest()
    value = {"format_version": FORMAT_VERSION, **asdict(key), "engine_sha256": digest}
    write_json(key_place(path), value)
    return key_place(path)


def staleness(path: Path, key: EngineKey) -> str:
    """Why the engine at `path` must be built (again) for `key`; empty if it may be used."""
    if not path.is_file() or not key_place(path).is_file():
        return "there is no engine yet"
    try:
        found = _read_key(path)
    except EngineError as exc:
        return str(exc)
    for name, value in _plain(key).items():
        if found.get(name) != value:
            return f"{name} was {found.get(name)!r}, is {value!r}"
    if sha256_file(path) != found.get("engine_sha256"):
        return "the engine file is truncated or altered"
    return ""


def check_fits(path: Path, wanted: EngineKey, sm: int | None = None) -> EngineKey:
    """The key of the engine at `path`, if it was built from what `wanted` says.

    The sizes and options of `wanted` do not matter, nor do its GPUs: `sm` is the one to run on.
    Raises EngineError.
    """
    _check_files(path)
    found = _read_key(path)
    for name in ("target", "library_version", "graph_sha256", "trunk_hash", "precision"):
        if found.get(name) != getattr(wanted, name):
            raise EngineError(
                f"{path} cannot be used ({name} was {found.get(name)!r}, is "
                f"{getattr(wanted, name)!r}): run `prunion build` again"
            )
    if sha256_file(path) != found.get("engine_sha256"):
        raise EngineError(
            f"{path} cannot be used (the engine file is truncated or altered): run `prunion build` "
            "again"
        )
    key = _to_key(path, found)
    if sm is not None and sm not in key.sms:
        built = ", ".join(map(str, key.sms)) or "no GPU in particular"
        raise EngineError(
            f"{path} was built for sm {built}, this GPU is sm {sm}: run `prunion build` here"
        )
    return key


def read_engine(path: Path | str, key: EngineKey) -> bytes:
    """The engine's bytes. Raises EngineError if it is corrupt or was built from something else."""
    path = Path(path)
    _check_files(path)
    reason = staleness(path, key)
    if reason:
        raise EngineError(f"{path} cannot be used ({reason}): run `prunion build` again")
    return path.read_bytes()


def _check_files(path: Path) -> None:
    if not path.is_file():
        raise EngineError(f"{path} does not exist: run `prunion build` on this machine")
    if not key_place(path).is_file():
        raise EngineError(f"{key_place(path)} is missing: copy it beside the engine, or build anew")


def _to_key(path: Path, found: dict[str, Any]) -> EngineKey:
    names = {field.name for field in fields(EngineKey)}
    values: dict[str, Any] = {
        k: tuple(v) if isinstance(v, list) else v for k, v in found.items() if k in names
    }
    try:
        key = EngineKey(**values)
        if not all(isinstance(sm, int) for sm in key.sms):
            raise TypeError
    except TypeError:
        raise EngineError(f"{key_place(path)} is incomplete: run `prunion build` again") from None
    return key


def _read_key(path: Path) -> dict[str, Any]:
    value = read_json(key_place(path), EngineError)
    if not isinstance(value, dict) or value.get("format_version") != FORMAT_VERSION:
        raise EngineError(f"{key_place(path)} is of another version")
    return value


def _plain(key: EngineKey) -> dict[str, Any]:
    """The key as JSON gives it back."""
    value: dict[str, Any] = json.loads(json.dumps(asdict(key)))
    return value

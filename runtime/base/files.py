"""Files that appear whole or not at all, and their hashes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunion.runtime.errors import PrunionError

__all__ = ["amount_text", "new_folder", "read_json", "replace_file", "sha256_file", "write_json"]


MAX_JSON_BYTES = 256 * 1024 * 1024


@contextmanager
def replace_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        _sync(temporary)
        temporary.chmod(0o666 & ~_umask())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def new_folder(path: Path | str, *, force: bool = False) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; move it to `path` when the block succeeds.

    Raises PrunionError if `path` exists and `force` is false; with `force` the old folder is
    replaced only after the new one is complete.
    """
    path = Path(path)
    if path.exists() and not force:
        raise PrunionError(f"{path} already exists: choose another place or pass --force")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{path.name}.", dir=path.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        for file in sorted(p for p in temporary.rglob("*") if p.is_file()):
            _sync(file)
        if path.exists():
            old = Path(tempfile.mkdtemp(prefix=f".{path.name}.old.", dir=path.parent))
            path.replace(old / path.name)
            temporary.replace(path)
            shutil.rmtree(old)
        else:
            temporary.replace(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def write_json(path: Path | str, value: Any) -> None:
    """Write `value` as indented JSON, atomically."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: Path | str, error: type[PrunionError] = PrunionError) -> Any:
    """Read a JSON file, raising `error` in one line if it is missing, too large or broken."""
    path = Path(path)
    try:
        if path.stat().st_size > MAX_JSON_BYTES:
            raise error(f"{path} is larger than {MAX_JSON_BYTES >> 20} MiB: not a prunion file")
        return json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise error(f"{path} does not exist") from None
    except (OSError, ValueError, RecursionError) as exc:
        raise error(f"{path} cannot be read as JSON ({exc}): copy or write it again") from None


def _sync(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def amount_text(value: float) -> str:
    """A share with four decimals, a count with thousands separated, rounded down never up."""
    if 0 < value <= 1:
        return f"{int(value * 10_000) / 10_000:.4f}"
    return f"{int(value):,}"

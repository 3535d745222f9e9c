"""Files and folders that appear whole or not at all, their hashes, and where caches lie.

What is written gets the mode that the kernel gives any new file of the user, `0o666 & ~umask`. To
read a process's umask one must change it, and until it is set back another thread's file is open to
everybody: so nothing here does, every file and folder is created with its full mode.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunion.runtime.errors import PrunionError

__all__ = ["cache_folder", "new_folder", "read_json", "replace_file", "sha256_file", "write_json"]

MAX_JSON_BYTES = 256 * 1024 * 1024


@contextmanager
def replace_file(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside `path`; rename it over `path` when the block succeeds."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _beside(path)
    mode = _create(temporary)
    try:
        yield temporary
        _finish(temporary, mode)
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
    temporary = _beside(path)
    temporary.mkdir(0o777)
    try:
        yield temporary
        probe = _beside(temporary / "mode")
        mode = _create(probe)
        probe.unlink()
        for file in sorted(p for p in temporary.rglob("*") if p.is_file() and not p.is_symlink()):
            _finish(file, mode)
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


def cache_folder() -> Path:
    """The user's cache folder for prunion: `PRUNION_CACHE`, or the system's place for caches."""
    if given := os.environ.get("PRUNION_CACHE"):
        return Path(given)
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "prunion"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", str(Path.home()))) / "prunion" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunion"


def _beside(path: Path) -> Path:
    """A name in the same folder that nobody else has."""
    return path.with_name(f".{path.name}.{secrets.token_hex(8)}")


def _create(path: Path) -> int:
    """Make an empty file; returns the mode that the kernel gave it."""
    handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode)
    finally:
        os.close(handle)


def _finish(path: Path, mode: int) -> None:
    """Give a written file its mode, and its bytes to the disk."""
    # Some writers (safetensors) put a file of their own, of mode 0600, in the place of ours.
    path.chmod(mode)
    with path.open("r+b") as stream:  # Windows syncs no handle that was opened for reading
        os.fsync(stream.fileno())

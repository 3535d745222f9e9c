"""Where prunion lies with this user: how it came, and so which command adds an extra; its cache."""

from __future__ import annotations

import json
import os
import sys
from importlib import metadata
from pathlib import Path

__all__ = ["cache_folder", "install_hint"]


def install_hint(extra: str, *options: str) -> str:
    """The command that installs `extra` where the user stands, such as `pip install -e '.[ort]'`.

    pip notes where a package came from (PEP 610): a folder, edited or copied, or a wheel. Without
    a note it came from an index, or is a clone on the path.
    """
    command = " ".join(("pip install", *options))
    source = _source()
    if source is None:
        return f"{command} 'prunion[{extra}]'"
    path, editable = source
    if path.is_dir():
        here = "." if path == Path.cwd() else path.as_posix()
        return f"{command} {'-e ' if editable else ''}'{here}[{extra}]'"
    return f"{command} '{path.as_posix()}[{extra}]'"


def _source() -> tuple[Path, bool] | None:
    """The folder or wheel that prunion was installed from, and whether it is edited in place."""
    from urllib.parse import unquote, urlsplit  # a tenth of the command line's start
    from urllib.request import url2pathname

    clone = Path(__file__).resolve().parents[2]
    if (clone / "pyproject.toml").is_file():
        return clone, True
    try:
        note = metadata.distribution("prunion").read_text("direct_url.json")
        value = json.loads(note) if note else {}
        url = urlsplit(value["url"])
        editable = bool(value.get("dir_info", {}).get("editable"))
    except (metadata.PackageNotFoundError, LookupError, TypeError, ValueError, AttributeError):
        return None
    if url.scheme != "file":
        return None
    path = Path(url2pathname(unquote(url.path)))
    return (path, editable) if path.exists() else None


def cache_folder() -> Path:
    """The user's cache folder for prunion: `PRUNION_CACHE`, or the system's place for caches.

    A user without a home, as in some containers, has none: a place where nothing can be, so that
    nothing is found there or kept.
    """
    if given := os.environ.get("PRUNION_CACHE"):
        return Path(given)
    try:
        return _caches()
    except RuntimeError:  # neither HOME nor an entry in the list of users
        return Path(os.devnull) / "prunion"


def _caches() -> Path:
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "prunion"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home()) / "prunion" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "prunion"

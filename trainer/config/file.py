"""A run file as plain tables: TOML read, values put in place of others, paths made absolute."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from prunion.runtime.base import reason_of, shown
from prunion.runtime.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["absolute_paths", "merge", "read_change", "read_toml"]

MAX_CONFIG_BYTES = 1 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError in one line if it cannot be read."""
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise ConfigError(f"{path} is larger than 1 MiB: not a run file")
        # utf-8-sig: some editors begin a file with a byte-order mark, which TOML forbids.
        return tomllib.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise ConfigError(f"{path} does not exist: give the path of a run file (TOML)") from None
    except OSError as exc:
        reason = exc.strerror or str(exc)
        raise ConfigError(f"{path} cannot be read ({reason}): give a run file") from None
    except (ValueError, RecursionError) as exc:  # bad TOML, no UTF-8, a number of 5000 digits
        # A Windows path in double quotes: TOML reads \\U and \\x as the beginning of a character.
        paths = "a path with backslashes goes in single quotes, or write it with forward slashes"
        fix = paths if "hex value" in str(exc) or "Unescaped" in str(exc) else "correct that place"
        raise ConfigError(f"{path} is not valid TOML ({reason_of(exc)}): {fix}") from None


def read_change(text: str) -> dict[str, Any]:
    """`train.lr=3e-4` as tables; a value that is no TOML is a string, so that quotes may go."""
    key, sign, value = (part.strip() for part in text.partition("="))
    for written in (value, json.dumps(value)):
        try:
            if sign and "\n" not in text:
                return tomllib.loads(f"{key} = {written}")
        except ValueError:
            continue
    raise ConfigError(f"--set {shown(text)}: give TABLE.KEY=VALUE, such as train.lr=3e-4")


def merge(value: dict[str, Any], change: dict[str, Any]) -> None:
    """Put the values of `change` into `value`, in place, table by table."""
    for key, item in change.items():
        old = value.get(key)
        if isinstance(old, dict) and isinstance(item, dict):
            merge(old, item)
        else:
            value[key] = item


def absolute_paths(value: dict[str, Any], folder: Path) -> None:
    """Make the paths in `value` absolute, in place; wrong types are left for the checks."""
    backbone = value.get("backbone")
    if isinstance(backbone, dict):
        weights = backbone.get("weights")
        if isinstance(weights, str) and weights.strip() not in ("", "default", "none"):
            backbone["weights"] = _absolute(weights, folder)
        if backbone.get("source") == "python":
            backbone["folder"] = _absolute(backbone.get("folder", "."), folder)
    budget = value.get("budget")
    if isinstance(budget, dict) and "profile" in budget:
        budget["profile"] = _absolute(budget["profile"], folder)
    train = value.get("train")
    if isinstance(train, dict) and "teacher" in train:
        train["teacher"] = _absolute(train["teacher"], folder)
    domains = value.get("domains")
    for table in domains.values() if isinstance(domains, dict) else ():
        if not isinstance(table, dict):
            continue
        for key in ("train", "test", "validation", "root"):
            if key in table:
                table[key] = _absolute(table[key], folder)
        if "root" not in table and table.get("source") == "torchvision":
            table["root"] = _absolute("data", folder)
        name = table.get("name")
        # Of the hub are OWNER/NAME and folders; a folder is meant where there is one.
        if table.get("source") == "huggingface" and isinstance(name, str) and name.strip():
            place = Path(_absolute(name, folder))
            table["name"] = str(place) if place.is_dir() else name


def _absolute(value: Any, folder: Path) -> Any:
    if isinstance(value, list):
        return [_absolute(item, folder) for item in value]
    if not isinstance(value, str) or not value.strip():
        return value
    try:
        return str((folder / Path(value).expanduser()).resolve())
    except (OSError, RuntimeError, ValueError) as exc:  # no such user's home, a loop of links
        reason = reason_of(exc)
        raise ConfigError(f"the path {shown(value)} leads nowhere ({reason}): correct it") from None

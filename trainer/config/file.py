"""A run file as plain tables: TOML read and written, values replaced, paths made absolute."""

from __future__ import annotations

import json
import re
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prunion.runtime.base import reason_of, shown
from prunion.runtime.errors import ConfigError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "absolute_paths",
    "put_value",
    "read_change",
    "read_toml",
    "said_twice",
    "set_option",
    "toml_key",
    "toml_text",
]

MAX_CONFIG_BYTES = 1 << 20
BARE = re.compile(r"[A-Za-z0-9_-]+")
_NOTHING = object()


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
        # A Windows path in double quotes: TOML reads \U and \x as the beginning of a character.
        paths = "a path with backslashes goes in single quotes, or write it with forward slashes"
        fix = paths if "hex value" in str(exc) or "Unescaped" in str(exc) else "correct that place"
        raise ConfigError(f"{path} is not valid TOML ({reason_of(exc)}): {fix}") from None


def toml_text(value: Any) -> str:
    """A value as TOML on one line; keys that are None are left out of a table.

    What does not print is escaped. Half a surrogate pair, of a path that is no UTF-8, is in no TOML
    text: reading it back fails.
    """
    if isinstance(value, dict):
        inside = (f"{toml_key(k)} = {toml_text(v)}" for k, v in value.items() if v is not None)
        return "{" + ", ".join(inside) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(map(toml_text, value)) + "]"
    if isinstance(value, float):
        return repr(float(value))
    # Not JSON's own escapes: it writes a character beyond U+FFFF as two, which TOML forbids.
    text = json.dumps(value, ensure_ascii=False, default=str)  # a date, which no key takes
    return "".join(x if x.isprintable() else f"\\U{ord(x):08x}" for x in text)


def toml_key(*path: str) -> str:
    """A key, behind the tables that it lies in."""
    return ".".join(name if BARE.fullmatch(name) else toml_text(name) for name in path)


def set_option(path: Sequence[str], value: Any) -> str:
    """`KEY=VALUE` as a shell takes it behind `--set`: `read_change` reads it as the two again."""
    key = toml_key(*path)
    if isinstance(value, str) and BARE.fullmatch(value) and _value(value) == value:
        return shlex.quote(f"{key}={value}")
    return shlex.quote(f"{key}={toml_text(value)}")


def read_change(text: str) -> tuple[list[str], Any]:
    """The path of keys and the value that `train.lr=3e-4` says.

    A value that is no TOML is a string, so that quotes may go.
    """
    key, sign, value = (part.strip() for part in text.partition("="))
    with suppress(ValueError, RecursionError):
        if sign and "\n" not in text:
            return _path(key), _value(value)
    raise ConfigError(f"--set {shown(text)}: give TABLE.KEY=VALUE, such as train.lr=3e-4")


def _path(key: str) -> list[str]:
    tables: Any = tomllib.loads(f"{key} = 0")
    path = []
    while isinstance(tables, dict):
        ((name, tables),) = tables.items()
        path.append(name)
    return path


def _value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except ValueError:
        return tomllib.loads(f"value = {toml_text(text)}")["value"]


def said_twice(changes: Sequence[str]) -> str:
    """The first key that two changes give a value, as `train.lr`; "" if there is none.

    What is no change is passed over: reading it will say so.
    """
    tables: dict[str, Any] = {}
    for text in changes:
        try:
            path, value = read_change(text)
        except ConfigError:
            continue
        there: Any = tables
        for name in path:
            there = there.get(name, _NOTHING) if isinstance(there, dict) else _NOTHING
        if there is not _NOTHING:
            return toml_key(*path)
        put_value(tables, path, value)
    return ""


def put_value(tables: dict[str, Any], path: Sequence[str], value: Any) -> None:
    """Put a value at a path of keys, in place of what is there: a table goes as a whole."""
    *outer, last = path
    for name in outer:
        if not isinstance(tables.get(name), dict):
            tables[name] = {}
        tables = tables[name]
    tables[last] = value


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
        path = folder / Path(value).expanduser()
        # A link's own name may have the suffix, and lie beside the images, that its target's has
        # not: caches link to files that are called by their content.
        linked = path.name not in ("", "..") and path.is_symlink()
        return str(path.parent.resolve() / path.name if linked else path.resolve())
    except (OSError, RuntimeError, ValueError) as exc:  # no such user's home, a loop of links
        reason = reason_of(exc)
        raise ConfigError(f"the path {shown(value)} leads nowhere ({reason}): correct it") from None

"""A run file: TOML in, a checked and frozen RunConfig out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from prunion.runtime.base import reason_of, shown
from prunion.runtime.errors import ConfigError
from prunion.trainer.config.checks import check_int, check_keys, check_table
from prunion.trainer.config.domains import DomainConfig, check_used
from prunion.trainer.config.run import RunConfig, read_domain, read_table
from prunion.trainer.config.train import TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = ["AddedDomainConfig", "load_added_domain", "load_config"]

MAX_CONFIG_BYTES = 1 << 20
# What `[train]` may say of a domain that comes later: nothing of the trunk, the budget or sharing.
ADDED_TRAIN = (
    *("warmup", "ramp", "settle", "batch_size", "lr", "weight_decay", "label_smoothing"),
    *("average", "precision", "workers"),
)


def load_config(path: Path | str, changes: Sequence[str] = ()) -> RunConfig:
    """Read a run file; its relative paths count from the file's own folder.

    Args:
        changes: values in place of the file's, such as `train.lr=3e-4`; paths as in the file.

    Raises ConfigError in one line if the file, a key or a value is wrong, or if the file of
    weights does not exist.
    """
    path = Path(path)
    value = _read_toml(path)
    for change in changes:
        _merge(value, _read_change(change))
    folder = path.absolute().parent
    try:
        _check_used(value)
        _absolute_paths(value, folder)
        config = RunConfig.from_json(value)
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from None
    backbone = config.backbone
    if backbone.weights_are_a_file and not _is_file(backbone.weights):
        raise ConfigError(
            f"{path}: [backbone] weights is {backbone.weights}, which is not a file: correct the "
            'path, or write "default" to let the library download its own'
        )
    return config


@dataclass(frozen=True)
class AddedDomainConfig:
    """A domain to add to a finished checkpoint, and how to train it."""

    domain: DomainConfig
    train: TrainConfig
    seed: int


def load_added_domain(path: Path | str) -> AddedDomainConfig:
    """Read a file with one `[domains.NAME]` table, and optionally `[train]` and `seed`.

    Raises ConfigError in one line if the file, a key or a value is wrong.
    """
    path = Path(path)
    value = _read_toml(path)
    try:
        _check_used(value)
        _absolute_paths(value, path.absolute().parent)
        check_keys("", value, ["seed", "train", "domains"], ("domains",))
        domains = check_table("domains", value["domains"])
        if len(domains) != 1:
            raise ConfigError(f"[domains] has {len(domains)} tables: give the one domain to add")
        ((name, table),) = domains.items()
        given = check_table("train", value.get("train", {}))
        for key in set(given) & {f.name for f in fields(TrainConfig)} - set(ADDED_TRAIN):
            raise ConfigError(
                f"[train] {key} means nothing for a domain that comes later: remove it"
            )
        check_keys("train", given, ADDED_TRAIN)
        train = {"warmup": 4, "ramp": 4, "settle": 4, **given}
        seed = value.get("seed", 0)
        check_int("", "seed", seed, 0, 2**32 - 1)
        return AddedDomainConfig(
            read_domain(name, table), read_table(TrainConfig, "train", train), seed
        )
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from None


def _read_toml(path: Path) -> dict[str, Any]:
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


def _check_used(value: dict[str, Any]) -> None:
    domains = value.get("domains")
    for name, table in domains.items() if isinstance(domains, dict) else ():
        if isinstance(table, dict):
            check_used(name, table)


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name that is too long for the system, a folder closed to us
        return False


def _read_change(text: str) -> dict[str, Any]:
    """`train.lr=3e-4` as tables; a value that is no TOML is a string, so that quotes may go."""
    key, sign, value = (part.strip() for part in text.partition("="))
    for written in (value, json.dumps(value)):
        try:
            if sign and "\n" not in text:
                return tomllib.loads(f"{key} = {written}")
        except ValueError:
            continue
    raise ConfigError(f"--set {shown(text)}: give TABLE.KEY=VALUE, such as train.lr=3e-4")


def _merge(value: dict[str, Any], change: dict[str, Any]) -> None:
    for key, item in change.items():
        old = value.get(key)
        if isinstance(old, dict) and isinstance(item, dict):
            _merge(old, item)
        else:
            value[key] = item


def _absolute_paths(value: dict[str, Any], folder: Path) -> None:
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
        for key in ("train", "test", "root"):
            if key in table:
                table[key] = _absolute(table[key], folder)
        if "root" not in table and table.get("source") == "torchvision":
            table["root"] = _absolute("data", folder)


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

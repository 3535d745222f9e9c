"""A run file: TOML in, a checked and frozen RunConfig out."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_args

from prunion.runtime.base import reason_of, shown
from prunion.runtime.errors import ConfigError
from prunion.trainer.config.backbone import BackboneConfig, InputConfig
from prunion.trainer.config.budget import BudgetConfig
from prunion.trainer.config.checks import (
    Device,
    check_choice,
    check_int,
    check_keys,
    check_table,
    key_of,
)
from prunion.trainer.config.domains import DomainConfig, check_used
from prunion.trainer.config.train import TrainConfig

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

__all__ = [
    "AddedDomainConfig",
    "BackboneConfig",
    "BudgetConfig",
    "DomainConfig",
    "InputConfig",
    "RunConfig",
    "TrainConfig",
    "load_added_domain",
    "load_config",
]

MAX_CONFIG_BYTES = 1 << 20
# What `[train]` may say of a domain that comes later: nothing of the trunk, the budget or sharing.
ADDED_TRAIN = (
    *("warmup", "ramp", "settle", "batch_size", "lr", "weight_decay", "label_smoothing"),
    *("average", "precision", "workers", "head_optimiser", "head_lr"),
)
# Keys of `[train]` that runs of an earlier prunion do not have: left out where they say nothing.
LATER_TRAIN = ("drops", "switch_lr", "head_optimiser", "head_lr")


@dataclass(frozen=True)
class RunConfig:
    """Everything a training run depends on; `domains` in the order of their indices."""

    backbone: BackboneConfig
    budget: BudgetConfig
    domains: tuple[DomainConfig, ...]
    input: InputConfig = field(default_factory=InputConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    seed: int = 0
    threads: int = 0
    device: Device = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "domains", tuple(self.domains))
        check_int("", "seed", self.seed, 0, 2**32 - 1)
        check_int("", "threads", self.threads, 0, 1024)
        check_choice("", "device", self.device, get_args(Device))
        if not self.domains:
            raise ConfigError("[domains] is empty: add at least one table [domains.NAME]")
        for key in ("reference", "feature"):
            without = [d.name for d in self.domains if not getattr(d, key)]
            if 0 < len(without) < len(self.domains):
                raise ConfigError(
                    f"[domains.{without[0]}] has no {key} and another domain has one: scores need "
                    "one of each domain, or leave them all out"
                )
        seen: dict[str, str] = {}
        for domain in self.domains:
            # Each domain becomes a file of the bundle, also where file names ignore case.
            other = seen.setdefault(domain.name.lower(), domain.name)
            if other != domain.name or sum(d.name == other for d in self.domains) > 1:
                raise ConfigError(
                    f"[domains.{domain.name}] is named like [domains.{other}]: rename one (upper "
                    "and lower case do not tell domains apart)"
                )

    def to_json(self) -> dict[str, Any]:
        """The run as plain JSON values, laid out like the TOML file; `from_json` reads it back."""
        value = asdict(self)
        for key in ("keep", "arguments", "folder"):
            if not value["backbone"][key]:  # as before there was such a key: a run is known by this
                del value["backbone"][key]
        for key, default in asdict(TrainConfig()).items():
            if key in LATER_TRAIN and value["train"][key] == default:
                del value["train"][key]
        value["train"] = {key: _plain(item) for key, item in value["train"].items()}
        value["backbone"] = {key: _plain(item) for key, item in value["backbone"].items()}
        value["input"] = {key: _plain(item) for key, item in value["input"].items()}
        value["domains"] = {}
        for domain in self.domains:
            table = {key: _plain(item) for key, item in asdict(domain).items()}
            del table["name"]
            table["name"] = table.pop("dataset")
            for key in ("image_column", "label_column", "drop_untrained", "feature"):
                if not table[key]:
                    del table[key]
            value["domains"][domain.name] = table
        return value

    @classmethod
    def from_json(cls, value: Any) -> RunConfig:
        """Check and build a run from `to_json`'s layout, which is the TOML file's."""
        if not isinstance(value, dict):
            raise ConfigError(f"the run is a {type(value).__name__}, not a table of keys")
        names = [f.name for f in fields(cls)]
        check_keys("", value, names, ("backbone", "budget", "domains"))
        domains = check_table("domains", value["domains"])
        top = {key: value[key] for key in ("seed", "threads", "device") if key in value}
        return cls(
            backbone=_table(BackboneConfig, "backbone", value["backbone"], ("name",)),
            budget=_table(BudgetConfig, "budget", value["budget"], ("limit",)),
            domains=tuple(_domain(name, table) for name, table in domains.items()),
            input=_table(InputConfig, "input", value.get("input", {})),
            train=_table(TrainConfig, "train", value.get("train", {})),
            **top,
        )

    @classmethod
    def from_checkpoint(cls, value: Any) -> RunConfig:
        """The same for what an earlier prunion wrote: it turned no image, and did not say so."""
        if isinstance(value, dict) and isinstance(value.get("input", {}), dict):
            value = {**value, "input": {"orientation": "ignore", **value.get("input", {})}}
        return cls.from_json(value)


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
        return AddedDomainConfig(_domain(name, table), _table(TrainConfig, "train", train), seed)
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


def _table(cls: type, table: str, value: Any, required: tuple[str, ...] = ()) -> Any:
    value = check_table(table, value)
    check_keys(table, value, [f.name for f in fields(cls)], required)
    return cls(**value)


def _domain(name: str, value: Any) -> DomainConfig:
    table = f"domains.{name}"
    value = dict(check_table(table, value))
    known = ["name", *(f.name for f in fields(DomainConfig) if f.name not in ("name", "dataset"))]
    for key, item in value.items():
        if key not in known and isinstance(item, dict):
            raise ConfigError(
                f'[{table}.{key}] is a table inside a domain: quote a name with a dot, [domains."'
                f'{name}.{key}"]'
            )
    check_keys(table, value, known)
    if "name" in value:
        value["dataset"] = value.pop("name")
    try:
        return DomainConfig(name=name, **value)
    except TypeError:
        raise ConfigError(f"{key_of('domains', name)} cannot be read as a domain") from None


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value

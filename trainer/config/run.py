"""What a run file says, checked and frozen."""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field, fields
from typing import Any, get_args

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
from prunion.trainer.config.domains import DomainConfig
from prunion.trainer.config.train import TrainConfig

if sys.version_info >= (3, 11):
    pass
else:
    pass

__all__ = [
    "BackboneConfig",
    "BudgetConfig",
    "DomainConfig",
    "InputConfig",
    "RunConfig",
    "TrainConfig",
    "read_domain",
    "read_table",
]


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
        without = [d.name for d in self.domains if not d.reference]
        if 0 < len(without) < len(self.domains):
            raise ConfigError(
                f"[domains.{without[0]}] has no reference and another domain has one: scores need "
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
        value["backbone"] = {key: _plain(item) for key, item in value["backbone"].items()}
        value["input"] = {key: _plain(item) for key, item in value["input"].items()}
        value["domains"] = {}
        for domain in self.domains:
            table = {key: _plain(item) for key, item in asdict(domain).items()}
            del table["name"]
            table["name"] = table.pop("dataset")
            for key in ("image_column", "label_column", "drop_untrained"):
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
            backbone=read_table(BackboneConfig, "backbone", value["backbone"], ("name",)),
            budget=read_table(BudgetConfig, "budget", value["budget"], ("limit",)),
            domains=tuple(read_domain(name, table) for name, table in domains.items()),
            input=read_table(InputConfig, "input", value.get("input", {})),
            train=read_table(TrainConfig, "train", value.get("train", {})),
            **top,
        )

    @classmethod
    def from_checkpoint(cls, value: Any) -> RunConfig:
        """The same for what an earlier prunion wrote: it turned no image, and did not say so."""
        if isinstance(value, dict) and isinstance(value.get("input", {}), dict):
            value = {**value, "input": {"orientation": "ignore", **value.get("input", {})}}
        return cls.from_json(value)


def read_table(cls: type, table: str, value: Any, required: tuple[str, ...] = ()) -> Any:
    value = check_table(table, value)
    check_keys(table, value, [f.name for f in fields(cls)], required)
    return cls(**value)


def read_domain(name: str, value: Any) -> DomainConfig:
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

"""A run file: TOML in, a checked and frozen RunConfig out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, get_args

from prunion.runtime.bundle import read_profile
from prunion.runtime.errors import ConfigError, PrunionError
from prunion.trainer.config.backbone import BackboneConfig, InputConfig
from prunion.trainer.config.budget import BudgetConfig
from prunion.trainer.config.checks import (
    Device,
    check_choice,
    check_held,
    check_int,
    check_kept,
    check_keys,
    check_table,
    key_of,
)
from prunion.trainer.config.domains import DomainConfig, check_domains, check_used
from prunion.trainer.config.file import absolute_paths, put_value, read_change, read_toml
from prunion.trainer.config.known_keys import (
    METHOD_KEYS,
    check_said,
    decided_ranking,
    drop_idle,
    drop_ignored,
    settles_apart,
)
from prunion.trainer.config.method import MOST_TURNS
from prunion.trainer.config.train import TrainConfig

__all__ = [
    "ADDED_TRAIN",
    "AddedDomainConfig",
    "BackboneConfig",
    "BudgetConfig",
    "DomainConfig",
    "InputConfig",
    "RunConfig",
    "TrainConfig",
    "asked_config",
    "load_added_domain",
    "load_config",
]

# What `[train]` may say of a domain that comes later: nothing of the trunk, the budget or sharing.
ADDED_TRAIN = (
    *("warmup", "ramp", "settle", "batch_size", "lr", "weight_decay", "label_smoothing"),
    *("average", "precision", "workers", "head_optimiser", "head_lr", "augment"),
)
# Keys of `[train]` that runs of an earlier prunion do not have: left out where they say nothing.
LATER_TRAIN = (
    *("drops", "switch_lr", "head_optimiser", "head_lr"),
    *("method", "norms", *METHOD_KEYS, "augment"),
)
# Keys of a domain that a run which does not use them is known without, as before there were such.
LATER_DOMAIN = (
    *("image_column", "label_column", "drop_untrained", "feature"),
    *("validation", "validation_split", "validation_holdout", "augment", "mean", "std"),
)


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
        if self.budget.own == 1 and self.train.own_epochs:
            raise ConfigError(
                f"[train] own_epochs is {self.train.own_epochs}, but [budget] own, to which each "
                "domain is thinned, is not given: give it, or remove own_epochs"
            )
        check_int("", "seed", self.seed, 0, 2**32 - 1)
        check_int("", "threads", self.threads, 0, 1024)
        check_choice("", "device", self.device, get_args(Device))
        check_domains(self.domains)
        if self.train.method == "finetune" and self.train.compile and len(self.domains) > 1:
            raise ConfigError(
                '[train] compile is true, which fixes the weights, and method is "finetune" with '
                f"{len(self.domains)} domains, which have their own: set compile = false"
            )
        if self.train.traits.by_turns and len(self.domains) > MOST_TURNS:
            raise ConfigError(
                f'[train] method is "{self.train.method}" and there are {len(self.domains)} '
                f"domains: it divides a network among {MOST_TURNS} at most; train fewer together"
            )
        if self.train.granularity == "slice" and self.budget.kind != "params":
            raise ConfigError(
                f'[budget] kind is "{self.budget.kind}", and [train] granularity is "slice", whose '
                'switches are counted by their weights: set kind = "params"'
            )
        if self.train.adapter_rank and (self.budget.own < 1 or self.budget.kind == "latency"):
            raise ConfigError(
                f"[train] adapter_rank is {self.train.adapter_rank}, and neither [budget] own nor "
                'kind = "latency" counts adapters: leave one of the two out'
            )
        if self.budget.own < 1 and not self.train.traits.prunes:
            raise ConfigError(
                f"[budget] own is {self.budget.own:g}, a share of channels, and [train] method is "
                f'"{self.train.method}" ({self.train.traits.what}), which removes none: remove it'
            )
        if self.budget.own < 1 and (advice := settles_apart(vars(self.train))):
            raise ConfigError(
                f"[budget] own is {self.budget.own:g}, and domains do not settle with the union: "
                f"{advice}"
            )
        ranking = decided_ranking(vars(self.train), self.budget.kind)
        object.__setattr__(self, "train", replace(self.train, ranking=ranking))

    @property
    def own_normalisation(self) -> bool:
        """Whether a domain has a mean and a deviation of its own."""
        return any(domain.mean is not None for domain in self.domains)

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
            for key in LATER_DOMAIN:
                if not table[key]:
                    del table[key]
            value["domains"][domain.name] = table
        return value

    @classmethod
    def from_json(cls, value: Any) -> RunConfig:
        """Check and build a run from `to_json`'s layout, which is the TOML file's."""
        if not isinstance(value, dict):
            raise ConfigError(f"the run is a {type(value).__name__}, not a table of keys")
        check_keys("", value, [f.name for f in fields(cls)], ("backbone", "budget", "domains"))
        domains = check_table("domains", value["domains"])
        top = {key: value[key] for key in ("seed", "threads", "device") if key in value}
        return cls(
            backbone=_table(BackboneConfig, "backbone", value["backbone"], ("name",)),
            budget=_table(BudgetConfig, "budget", _widths(value["budget"]), ("limit",)),
            domains=tuple(_domain(name, table) for name, table in domains.items()),
            input=_table(InputConfig, "input", value.get("input", {})),
            train=_table(TrainConfig, "train", value.get("train", {})),
            **top,
        )

    @classmethod
    def from_checkpoint(cls, value: Any) -> RunConfig:
        """The same for what an earlier prunion wrote: it turned no image, and did not say so.

        It also took keys that say nothing beside others; they go.
        """
        if isinstance(value, dict) and isinstance(value.get("input", {}), dict):
            value = {**value, "input": {"orientation": "ignore", **value.get("input", {})}}
        return cls.from_json(drop_ignored(value))


def asked_config(asked: RunConfig | dict[str, Any], *, begun: bool = False) -> RunConfig:
    """The run that a person asks for, of tables laid out like a run file's or of a program's own.

    Args:
        begun: of a run that goes on: keys that say nothing were taken by an earlier prunion, and
            the network that was traced needs no file of weights.

    Raises ConfigError in one line if a key or a value is wrong or says nothing, or if the file of
    weights does not exist.
    """
    tables = drop_idle(asked) if begun else asked
    config = asked if isinstance(asked, RunConfig) else RunConfig.from_json(tables)
    if not begun:
        check_said(asked.to_json() if isinstance(asked, RunConfig) else asked, vars(config.train))
        config.backbone.check_file()
    return config


def load_config(path: Path | str, changes: Sequence[str] = (), *, begun: bool = False) -> RunConfig:
    """Read a run file; its relative paths count from the file's own folder.

    Args:
        changes: values in place of the file's, such as `train.lr=3e-4`; paths as in the file.
        begun: as of `asked_config`, which raises the same.
    """
    path = Path(path)
    value = read_toml(path)
    for change in changes:
        put_value(value, *read_change(change))
    try:
        check_used(value.get("domains"))  # of a file alone: `to_json` has every key of a domain
        absolute_paths(value, path.absolute().parent)
        return asked_config(value, begun=begun)
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from None


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
    value = read_toml(path)
    try:
        check_used(value.get("domains"))
        absolute_paths(value, path.absolute().parent)
        check_kept("", value, RunConfig, ("seed", "train", "domains"))
        check_keys("", value, ["seed", "train", "domains"], ("domains",))
        domains = check_table("domains", value["domains"])
        if len(domains) != 1:
            raise ConfigError(f"[domains] has {len(domains)} tables: give the one domain to add")
        ((name, table),) = domains.items()
        given = check_table("train", value.get("train", {}))
        check_kept("train", given, TrainConfig, ADDED_TRAIN)
        check_keys("train", given, ADDED_TRAIN)
        train = {"warmup": 4, "ramp": 4, "settle": 4, **given}
        seed = value.get("seed", 0)
        check_int("", "seed", seed, 0, 2**32 - 1)
        for key in ("reference", "feature"):
            if isinstance(table, dict) and key in table:
                raise ConfigError(
                    f"{key_of(f'domains.{name}', key)} is for scores over all domains of a run, "
                    "and this domain comes alone: remove it"
                )
        check_held(value)
        return AddedDomainConfig(_domain(name, table), _table(TrainConfig, "train", train), seed)
    except ConfigError as exc:
        raise ConfigError(f"{path}: {exc}") from None


def _table(cls: type, table: str, value: Any, required: tuple[str, ...] = ()) -> Any:
    value = check_table(table, value)
    check_keys(table, value, [f.name for f in fields(cls)], required)
    return cls(**value)


def _widths(budget: Any) -> Any:
    """With the multiple that the profile was measured at, where no other is given."""
    if not isinstance(budget, dict) or "round_to" in budget or "profile" not in budget:
        return budget
    if not isinstance(budget["profile"], str):
        return budget
    try:
        return {**budget, "round_to": read_profile(budget["profile"]).round_to}
    except (PrunionError, OSError, ValueError):  # a wrong file is told where it is used
        return budget


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

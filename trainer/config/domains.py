"""One `[domains.NAME]` table of a run file: where a domain's images come from."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, get_args

from prunion.runtime.base import shown
from prunion.runtime.bundle import MAX_DOMAINS
from prunion.runtime.errors import ConfigError
from prunion.trainer.config.augment import AugmentConfig, as_augment
from prunion.trainer.config.checks import (
    DomainSource,
    check_bool,
    check_choice,
    check_int,
    check_number,
    check_text,
    check_triple,
    key_of,
)

__all__ = ["DomainConfig", "check_domains", "check_used", "drop_unused"]

# Keys that a source has no use for.
SPLITS = ("train_split", "test_split", "validation_split")
UNUSED = {
    "files": ("root", "download", *SPLITS),
    "huggingface": ("root", "download"),
    "python": ("root", "download", *SPLITS, "image_column", "label_column"),
}
SOURCES = {
    "files": "files",
    "huggingface": "a data set of the Hugging Face hub",
    "python": "images that a program hands over",
}
LISTED = (".parquet", ".tar", ".csv", ".tsv", ".jsonl")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True)
class DomainConfig:
    """A domain's name, its training and test images, and how training may change them.

    `source = "files"` reads `train` and `test`: one folder of class folders or of shards, or
    Parquet files, tar shards or tables that name images (one path or several, patterns too; kept as
    a tuple). For "python" a program hands data sets over. "torchvision" and "huggingface" read the
    data set named `dataset`, which the run file calls `name`. `image_column` and `label_column` say
    which columns hold images and labels, where it is Parquet, a tar, a table or of the hub.
    `drop_untrained` leaves out the classes without a training image, and their test images.
    `validation` (as `test`), `validation_split` or a share of the training images,
    `validation_holdout`, is what the run's accuracy by epoch is measured on, so that test images
    are read at its end alone. `reference` is what the papers' scores count against: the accuracy in
    percent of a network finetuned for this domain alone; `feature` what S_E is relative to: that of
    the frozen backbone with a head alone. `augment` is how training changes its images; None is as
    `[train]` says. `mean` and `std` of its RGB in 0 … 1 are what the network is to be given it by;
    None is `[input]`'s, as for the others.
    """

    name: str
    source: DomainSource = "files"
    train: tuple[str, ...] = ()
    test: tuple[str, ...] = ()
    dataset: str = ""
    root: str = "data"
    download: bool = False
    train_split: str = "train"
    test_split: str = "test"
    image_column: str = ""
    label_column: str = ""
    drop_untrained: bool = False
    validation: tuple[str, ...] = ()
    validation_split: str = ""
    validation_holdout: float = 0.0
    holdout: float = 0.0
    limit: int = 0
    mirror: bool = False
    crop: bool = True
    reference: float = 0.0
    feature: float = 0.0
    augment: AugmentConfig | None = None
    mean: tuple[float, float, float] | None = None
    std: tuple[float, float, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not NAME.fullmatch(self.name):
            raise ConfigError(
                f"[domains] has a domain named {shown(self.name)}: use 1 to 64 letters, digits, "
                "'_', '.' or '-', beginning with a letter or digit"
            )
        where = f"domains.{self.name}"
        check_choice(where, "source", self.source, get_args(DomainSource))
        object.__setattr__(self, "train", _paths(where, "train", self.train))
        object.__setattr__(self, "test", _paths(where, "test", self.test))
        object.__setattr__(self, "validation", _paths(where, "validation", self.validation))
        check_text(where, "name", self.dataset, empty=True)
        for key in ("root", "train_split", "test_split"):
            check_text(where, key, getattr(self, key))
        for key in ("image_column", "label_column", "validation_split"):
            check_text(where, key, getattr(self, key), empty=True)
        for key in ("download", "drop_untrained", "mirror", "crop"):
            check_bool(where, key, getattr(self, key))
        for key in ("holdout", "validation_holdout"):
            check_number(where, key, getattr(self, key), 0, 0.9)
        for key in ("validation", "validation_split"):
            if getattr(self, key) and self.validation_holdout:
                raise ConfigError(
                    f"{key_of(where, 'validation_holdout')} is {self.validation_holdout:g}, but "
                    f"{key} is given too: remove one"
                )
        check_int(where, "limit", self.limit, 0, 10**9)
        for key in ("reference", "feature"):
            check_number(where, key, getattr(self, key), 0, 99.99)
        if self.augment is not None:
            object.__setattr__(self, "augment", as_augment(where, self.augment))
            if self.augment.rescale and not self.crop:
                raise ConfigError(
                    f"{key_of(f'{where}.augment', 'rescale')} is {self.augment.rescale:g}, a crop, "
                    "but crop is false: remove one of the two"
                )
        self._check_normalisation(where)
        self._check_source(where)

    def _check_normalisation(self, where: str) -> None:
        given = {key: getattr(self, key) for key in ("mean", "std")}
        lacking = [key for key, value in given.items() if value is None]
        if len(lacking) == 1:
            other = next(key for key in given if key not in lacking)
            raise ConfigError(
                f"{key_of(where, lacking[0])} is missing, and {other} is given: give both, or "
                "neither for those of [input]"
            )
        for key, value in given.items():
            if value is not None:
                low = key == "std"
                object.__setattr__(self, key, check_triple(where, key, value, open_low=low))

    def _check_source(self, where: str) -> None:
        defaults = {field.name: field.default for field in fields(self)}
        for key in UNUSED.get(self.source, ()):
            if getattr(self, key) != defaults[key]:
                raise _unused(where, key, self.source)
        column = "image_column" if self.image_column else "label_column"
        if getattr(self, column) and self.source == "torchvision":
            raise ConfigError(
                f"{key_of(where, column)} is for Parquet, tables and the Hugging Face hub, but "
                'source is "torchvision": remove it'
            )
        if self.source == "files":
            self._check_files(where)
            return
        given = [key for key in ("train", "test", "validation") if getattr(self, key)]
        if self.source == "python" and not given:
            return  # a program hands its images over
        if given:
            key = given[0]
            raise ConfigError(
                f'{key_of(where, key)} goes with files, but source is "{self.source}": remove one'
            )
        if not self.dataset:
            raise ConfigError(
                f'{key_of(where, "name")} is missing: name the data set, such as name = "CIFAR10"'
            )

    def _check_files(self, where: str) -> None:
        if self.dataset:
            raise ConfigError(
                f"{key_of(where, 'name')} names a data set, but source is missing: add source = "
                '"torchvision" or "huggingface", or remove name'
            )
        if not self.train:
            raise ConfigError(
                f"{key_of(where, 'train')} is missing: give a folder of class folders, or "
                'Parquet files, or source = "torchvision" or "huggingface" with a name'
            )
        if not self.test and not self.holdout:
            raise ConfigError(
                f"{key_of(where, 'test')} is missing: give the test images, or holdout = 0.2 to "
                "set a share of the training images aside"
            )
        if self.test and self.holdout:
            raise ConfigError(
                f"{key_of(where, 'holdout')} is {self.holdout:g}, but test is given too: remove one"
            )


def check_used(domains: object) -> None:
    """Refuse a run file's keys that a domain would ignore, even with their default."""
    for name, table in domains.items() if isinstance(domains, dict) else ():
        for key in _unused_keys(table):
            if key in table and key == "test_split" and _holds_out(table):
                raise ConfigError(
                    f"{key_of(f'domains.{name}', key)} is {shown(table[key])}, but holdout is "
                    f"{shown(table['holdout'])}, which takes its place: remove one"
                )
            if key in table:
                raise _unused(f"domains.{name}", key, table.get("source", "files"))


def drop_unused(domains: Mapping[str, Any]) -> dict[str, Any]:
    """A checkpoint's domains without what they ignore: it holds every key."""
    return {
        name: {
            key: _cropped(value) if key == "augment" and table.get("crop") is False else value
            for key, value in table.items()
            if key not in _unused_keys(table)
        }
        if isinstance(table, dict)
        else table
        for name, table in domains.items()
    }


def _cropped(augment: Any) -> Any:
    """Changes of images that are not cropped, which an earlier prunion took with `rescale`."""
    return {**augment, "rescale": 0.0} if isinstance(augment, dict) else augment


def check_domains(domains: Sequence[DomainConfig]) -> None:
    """Raise ConfigError where domains, each of them right, cannot be those of one run."""
    if not domains:
        raise ConfigError("[domains] is empty: add at least one table [domains.NAME]")
    if len(domains) > MAX_DOMAINS:
        raise ConfigError(
            f"[domains] has {len(domains):,} tables, and a bundle holds {MAX_DOMAINS:,} domains: "
            "train fewer together"
        )
    for key in ("reference", "feature"):
        without = [d.name for d in domains if not getattr(d, key)]
        if 0 < len(without) < len(domains):
            raise ConfigError(
                f"[domains.{without[0]}] has no {key} and another domain has one: scores need "
                "one of each domain, or leave them all out"
            )
    seen: dict[str, str] = {}
    for domain in domains:
        # Each domain becomes a file of the bundle, also where file names ignore case.
        other = seen.get(domain.name.casefold())
        if other is not None:
            raise ConfigError(
                f"[domains.{domain.name}] is named like [domains.{other}]: rename one (upper "
                "and lower case do not tell domains apart)"
            )
        seen[domain.name.casefold()] = domain.name


def _unused_keys(table: object) -> tuple[str, ...]:
    source = table.get("source", "files") if isinstance(table, dict) else None
    unused = UNUSED.get(source, ()) if isinstance(source, str) else ()
    return (*unused, "test_split") if _holds_out(table) and "test_split" not in unused else unused


def _holds_out(table: Any) -> bool:
    """Whether test images are set aside of the training images of a named set."""
    named = isinstance(table, dict) and table.get("source") in ("torchvision", "huggingface")
    return named and bool(table.get("holdout"))


def _unused(where: str, key: str, source: str) -> ConfigError:
    others = [x for x in get_args(DomainSource) if key not in UNUSED.get(x, ())]
    return ConfigError(
        f"{key_of(where, key)} means nothing for {SOURCES[source]}, only for source = "
        f'"{others[0]}": remove it'
    )


def _paths(where: str, key: str, value: object) -> tuple[str, ...]:
    values = value if isinstance(value, (list, tuple)) else [value]
    paths = tuple(check_text(where, key, path) for path in values)
    if len(paths) > 1:
        for path in paths:
            if not path.lower().endswith(LISTED):
                raise ConfigError(
                    f"{key_of(where, key)} lists {shown(path)}: a list may hold .parquet or .tar "
                    "files or tables (.csv, .tsv, .jsonl); give one folder of class folders as text"
                )
    return paths

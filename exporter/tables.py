"""What a program gives in place of a run file and of options, in the plain form of both."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from prunion.runtime.base import is_number, listed, path_argument, shown
from prunion.runtime.errors import ConfigError
from prunion.trainer.config import RunConfig, domain_parts

__all__ = ["check_handed", "domain_table", "handed_sets", "plain", "sees", "values_of"]

PARTS = ("train", "test", "validation")
HOLDOUT = 0.1  # of the training images, where a domain has no test images
SIZE = 224  # of a network that does not say what it was trained with


def plain(value: Any) -> Any:
    """Tables as a run file would have them: paths as text, NumPy's and torch's numbers as Python's.

    What a run file cannot hold stays, to be refused with its key.
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.ndarray):
        return value.tolist()
    single = isinstance(value, np.generic) or getattr(value, "shape", None) == ()
    return value.item() if single else value


def values_of(given: Any) -> list[Any]:
    """The values of an option that takes several: a single one, also text, is one; None is none."""
    value = plain(given)
    if value is None:
        return []
    if isinstance(value, (str, Mapping)) or not isinstance(value, Iterable):
        return [value]
    return [plain(item) for item in value]


def check_handed(config: RunConfig, datasets: Mapping[str, Any]) -> None:
    """Refuse data sets in hand that a run would not read."""
    sources = {domain.name: domain.source for domain in config.domains}
    for name in datasets:
        if name not in sources:
            raise ConfigError(
                f"datasets has {shown(name)}, and the run has the domains {listed(list(sources))}: "
                "correct the name, or add the domain"
            )
        if sources[name] != "python":
            raise ConfigError(
                f'datasets has {shown(name)}, and [domains.{name}] source is "{sources[name]}", '
                'which reads none in hand: set source = "python", or leave it out of datasets'
            )


def _check_tuple(name: str, value: Any) -> None:
    """Raise ConfigError for a list of files that may be a domain's parts, or one set in parts."""
    if not isinstance(value, list) or len(value) not in (2, 3):
        return
    if all(isinstance(x, (str, Path)) and Path(x).is_file() for x in value):
        raise ConfigError(
            f"domains[{name!r}] is a list of {len(value)} files, parts or one set: give a tuple, "
            '(train, test), or {"train": [...]}'
        )


def sees(model: nn.Module) -> dict[str, Any]:
    """Size and normalisation that a network of timm or torchvision was trained with."""
    known = getattr(model, "pretrained_cfg", None)
    known = known if isinstance(known, Mapping) else {}
    value: dict[str, Any] = {key: known[key] for key in ("mean", "std") if key in known}
    size: Any = tuple(known.get("input_size") or ())[1:]
    if len(size) != 2:
        size = plain(getattr(model, "image_size", None) or getattr(model, "img_size", None))
        size = tuple(size) if isinstance(size, list) else size
    fits = is_number(size) or (isinstance(size, tuple) and len(size) == 2)
    return {**value, "size": size if fits else SIZE}


def domain_table(name: str, value: Any) -> tuple[dict[str, Any], tuple[Any, ...] | None]:
    """The keys of `[domains.NAME]`, and the data sets in hand."""
    sets: tuple[Any, ...] | None = None
    if isinstance(value, Mapping):
        table = dict(value)
        if any(not _is_paths(table[key]) for key in PARTS if key in table):
            sets = handed_sets([table.pop(part, None) for part in PARTS])
            table = {"source": "python", **table}
    elif _is_paths(value) and not isinstance(value, (tuple, list)):
        table = {
            part: str(path)
            for part, path in domain_parts(path_argument(f"domains[{name!r}]", value)).items()
        }
    else:
        _check_tuple(name, value)
        given = dict(zip(PARTS, handed_sets(value), strict=False))
        table = {part: images for part, images in given.items() if images is not None}
        if not all(map(_is_paths, table.values())):
            sets, table = handed_sets(value), {"source": "python"}
    tested = sets[1] is not None if sets else bool(table.get("test"))
    if table.get("source", "files") in ("files", "python") and not tested:
        table.setdefault("holdout", HOLDOUT)
    return plain(table), sets


def _is_paths(value: Any) -> bool:
    values = value if isinstance(value, (list, tuple)) else [value]
    return bool(values) and all(isinstance(x, (str, Path)) for x in values)


def handed_sets(value: Any) -> tuple[Any, ...]:
    """Training and test images, the latter None where there are none, and validation images."""
    given = tuple(value) if isinstance(value, (tuple, list)) and len(value) in (2, 3) else (value,)
    train, test, validation = (*given, None, None)[:3]
    return (train, test) if validation is None else (train, test, validation)

"""What a program gives in place of a run file and of options, in the plain form of both."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prunion.runtime.base import shown
from prunion.runtime.errors import ConfigError
from prunion.trainer.config import RunConfig

__all__ = ["check_handed", "check_tuple", "plain", "values_of"]


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
                f"datasets has {shown(name)}, and the run has the domains {', '.join(sources)}: "
                "correct the name, or add the domain"
            )
        if sources[name] != "python":
            raise ConfigError(
                f'datasets has {shown(name)}, and [domains.{name}] source is "{sources[name]}", '
                'which reads none in hand: set source = "python", or leave it out of datasets'
            )


def check_tuple(name: str, value: Any) -> None:
    """Raise ConfigError for a list of files that may be a domain's parts, or one set in parts."""
    if not isinstance(value, list) or len(value) not in (2, 3):
        return
    if all(isinstance(x, (str, Path)) and Path(x).is_file() for x in value):
        raise ConfigError(
            f"domains[{name!r}] is a list of {len(value)} files, parts or one set: give a tuple, "
            '(train, test), or {"train": [...]}'
        )

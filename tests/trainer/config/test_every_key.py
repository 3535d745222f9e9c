"""Whatever a key holds, it is refused in one line, or kept as a value of the key's own type."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import pytest

from prunion.runtime.errors import ConfigError
from prunion.trainer.config import (
    BackboneConfig,
    BudgetConfig,
    DomainConfig,
    InputConfig,
    RunConfig,
    TrainConfig,
    load_config,
)
from prunion.trainer.config.augment import AugmentConfig
from prunion.trainer.config.file import toml_text

TABLES: dict[str, type] = {
    "backbone": BackboneConfig,
    "input": InputConfig,
    "budget": BudgetConfig,
    "train": TrainConfig,
    "domains": DomainConfig,
    "augment": AugmentConfig,
    "": RunConfig,
}
KEYS = [
    (table, field.name)
    for table, kind in TABLES.items()
    for field in fields(kind)
    if (table, field.name) != ("domains", "name") and (table or field.name not in TABLES)
]
ODD: list[Any] = [
    *(None, True, False, 0, 1, 5, -1, 10**30, 10**400, -(10**400)),
    *(0.0, -0.0, 1.0, 5.0, 0.5, 1e-320, 1e308, math.nan, math.inf, -math.inf),
    *("", " ", "x", "auto", "learned", "0.5", "nan", "inf", "\0", "\n", "x" * 5000),
    *([], [0], [1, 1, 1], [math.nan], [[]], ["x"], [True], ["x.tar", 0], [10**400] * 3),
    *({}, {"x": 1}, {"randaugment": True}, {"colour": math.nan}, {"erasing": 10**400}),
    *(datetime.date(2020, 1, 1), datetime.time(1)),
]
# Beside which other rules look at a key.
BESIDE: list[dict[str, Any]] = [
    {},
    {"recipe": "paper", "teacher": "x"},
    {"method": "packnet"},
    {"method": "ba2", "adapter_rank": 4},
]


def run_with(table: str, key: str, value: Any, train: Mapping[str, Any] | None = None) -> Any:
    """A run that says so, and otherwise what it must."""
    run: dict[str, Any] = {
        "backbone": {"name": "resnet18"},
        "budget": {"limit": 0.5},
        "domains": {"a": {"train": "x", "test": "y"}},
        "input": {},
        "train": {**(train or {})},
    }
    if not table:
        return run | {key: value}
    if table == "domains":
        run["domains"]["a"]["name" if key == "dataset" else key] = value
    elif table == "augment":
        run["train"]["augment"] = {key: value}
    else:
        run[table][key] = value
    return run


def kept(run: RunConfig, table: str, key: str) -> Any:
    """What the run has of it."""
    if table == "augment":
        return getattr(run.train.augment, key)
    if table == "domains":
        return getattr(run.domains[0], key)
    return getattr(getattr(run, table) if table else run, key)


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the type that a field says."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(fits(value, one) for one in inner)
    if origin is Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin is tuple:
        of = inner[:1] * len(value) if inner[-1] is ... else inner
        return type(value) is tuple and len(of) == len(value) and all(map(fits, value, of))
    if hint is float:
        return type(value) in (int, float) and math.isfinite(value)
    if hint is type(None):
        return value is None
    return isinstance(value, Mapping) if origin is not None else type(value) is hint


@pytest.mark.parametrize(("table", "key"), KEYS)
def test_a_key_is_refused_or_of_its_type(table: str, key: str) -> None:
    hint = get_type_hints(TABLES[table])[key]
    for value in ODD:
        for beside in BESIDE if table == "train" else BESIDE[:1]:
            try:
                run = RunConfig.from_json(run_with(table, key, value, beside))
            except ConfigError as exc:
                assert str(exc).isprintable() and len(str(exc)) < 1000, value
                continue
            found = kept(run, table, key)
            assert fits(found, hint), f"{value!r} is kept as {found!r}"
            assert RunConfig.from_json(run.to_json()) == run


@pytest.mark.parametrize(("table", "key"), [("train", "distillation"), ("train", "average")])
def test_a_number_of_hundreds_of_digits_is_refused_in_one_line(
    tmp_path: Path, table: str, key: str
) -> None:
    path = tmp_path / "run.toml"
    run = run_with(table, key, 10**400, {"method": "packnet"} if key == "average" else None)
    text = "".join(f"{name} = {toml_text(value)}\n" for name, value in run.items() if value)
    path.write_text(text, "utf-8")
    with pytest.raises(ConfigError, match=rf"\[{table}\] {key} is 1000.*: give a number from 0"):
        load_config(path)


@pytest.mark.parametrize("teacher", [False, 0, 0.0, [], {}, None])
def test_a_teacher_that_is_no_text_is_refused(teacher: Any) -> None:
    with pytest.raises(ConfigError, match=r"\[train\] teacher is .*: give a string in quotes"):
        RunConfig.from_json(run_with("train", "teacher", teacher))


@pytest.mark.parametrize("crops", [1.0, 5.0, True])
def test_crops_that_are_no_whole_number_are_refused(crops: Any) -> None:
    with pytest.raises(ConfigError, match=r"\[input\] test_crops is .*: use 1, 5 or 10"):
        InputConfig(resize=80, test_crops=crops)

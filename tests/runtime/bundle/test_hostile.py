"""JSON from elsewhere may hold anything: every value is read, or refused in one line."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prunion.runtime.base import (
    Fields,
    is_number,
    is_whole,
    read_json,
    safe_relative_path,
    sha256_file,
    shown,
)
from prunion.runtime.bundle import (
    Fit,
    Grid,
    Layer,
    Profile,
    UnitTable,
    load_manifest,
    open_bundle,
    read_profile,
)
from prunion.runtime.errors import BudgetError, BundleError, EngineError, PrunionError
from prunion.runtime.model.plan import BATCHES, Plan, load_plan, save_plan
from prunion.runtime.tensorrt import engine_key, write_engine
from prunion.runtime.tensorrt.files import key_place, read_engine, read_fitting

HOSTILE = [
    10**400,
    -(10**400),
    2**63,
    -1,
    0,
    1.5,
    1e308,
    float("nan"),
    float("inf"),
    float("-inf"),
    True,
    None,
    "",
    "\ud800",
    "two\nlines",
    "two\u2028lines",
    "\x1b[2J",
    "x" * 5000,
    "x" * 300,
    [],
    [[]],
    {},
    {"a": 1},
]


def places(value: Any, where: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The way to every value in `value`, and to itself."""
    yield where
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from places(inner, (*where, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:2]):
            yield from places(inner, (*where, index))


def attacked(value: Any) -> Iterator[tuple[str, Any]]:
    """`value` with one hostile value in one place, and with one hostile key."""
    for where in places(value):
        for bad in HOSTILE:
            if not where:
                yield shown(bad), bad
                continue
            made = copy.deepcopy(value)
            inner = made
            for step in where[:-1]:
                inner = inner[step]
            inner[where[-1]] = bad
            yield f"{where}: {shown(bad)}", made
            if isinstance(bad, str) and isinstance(inner, dict):
                inner[bad] = inner.pop(where[-1])
                yield f"{where}: key {shown(bad)}", made


def check(path: Path, read: Callable[[], object], error: type[PrunionError]) -> None:
    """Attack the file at `path`; `read` must take it, or say what is wrong as `error`."""
    value = json.loads(path.read_text("utf-8"))
    read()
    refused = 0
    for what, made in attacked(value):
        path.write_text(json.dumps(made), "utf-8")
        try:
            read()
        except error as exc:
            refused += 1
            message = str(exc)
            assert len(message.splitlines()) == 1, (what, message)
            assert message.encode("utf-8"), what
        except Exception as exc:
            raise AssertionError(f"{path.name} with {what}: {exc!r}") from exc
    assert refused > 20


def test_a_manifest(own_bundle: Path) -> None:
    path = own_bundle / "manifest.json"
    check(path, lambda: load_manifest(path), BundleError)


def test_a_unit_table(own_bundle: Path) -> None:
    path = own_bundle / "units.json"  # an open bundle's own table stays as it was
    check(path, lambda: UnitTable.from_json(read_json(path, BundleError)), PrunionError)


def test_a_profile(tmp_path: Path) -> None:
    grid = Grid((4, 8), (3,), np.array([[1.0], [2.0]]))
    layer = Layer("conv.weight", (8, 3, 3, 3), 120)
    profile = Profile(
        network="toy",
        size=(12, 10),
        backend="cpu",
        provider="CPUExecutionProvider",
        batch=1,
        threads=1,
        round_to=1,
        machine={"cpu": "x"},
        layers={"conv.weight": (layer, 0)},
        grids=(grid,),
        fit=Fit(1.0, 0.5, 0.01, 0.02),
        samples=((1.0, 1.1),),
    )
    path = tmp_path / "device.json"
    path.write_text(json.dumps(profile.to_json()), "utf-8")
    check(path, lambda: read_profile(path), BudgetError)


def test_a_profiles_errors_are_its_own(tmp_path: Path) -> None:
    path = tmp_path / "export the bundle again.json"
    path.write_text("{}", "utf-8")
    with pytest.raises(BudgetError, match="format_version is missing: write it again with") as told:
        read_profile(path)
    assert str(told.value).startswith(f"{path}: "), "the file's own name stays what it is"


def test_an_engines_key(own_bundle: Path, tmp_path: Path) -> None:
    key = engine_key(open_bundle(own_bundle), "tensorrt", "10.3.0", sms=[87])
    engine = tmp_path / "x.engine"
    write_engine(engine, key, b"engine")
    check(key_place(engine), lambda: read_engine(engine, key), EngineError)
    write_engine(engine, key, b"engine")
    check(key_place(engine), lambda: read_fitting(engine, key), EngineError)


def test_a_remembered_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PRUNION_CACHE", str(tmp_path))
    times = dict.fromkeys(BATCHES, 1.0)
    save_plan("key", Plan(times, times, {}))
    (path,) = (tmp_path / "plans").iterdir()
    value = read_json(path)
    for what, made in attacked(value):
        path.write_text(json.dumps(made), "utf-8")
        plan = load_plan("key")
        found = [] if plan is None else [*plan.mixed.values(), *plan.pinned.values()]
        assert all(0 < ms < float("inf") for ms in found), what


def test_a_file_name_may_be_too_long_for_the_system(own_bundle: Path) -> None:
    path = own_bundle / "manifest.json"
    value = json.loads(path.read_text("utf-8"))
    value["files"]["x" * 900] = "0" * 64
    path.write_text(json.dumps(value), "utf-8")
    with pytest.raises(BundleError, match="cannot be read"):
        open_bundle(own_bundle)
    assert sha256_file(path)


def test_readers_carry_their_error_and_fix_to_what_lies_inside() -> None:
    top = Fields({"a": [{"b": "x"}, 5]}, "", "file.json", EngineError, "build it again")
    items = top.each("a", 10)
    assert str(next(items).fail("b", "is odd")) == "file.json: a[0].b is odd: build it again"
    with pytest.raises(EngineError, match=r"file.json: a\[1\] must be an object: build it again"):
        next(items)
    with pytest.raises(EngineError, match=r"'x\\ny' is missing"):
        top.get("x\ny")


def test_numbers_names_and_paths() -> None:
    assert not is_number(10**400)
    assert is_number(10**300)
    assert is_whole(3, 1, 3)
    assert not any(is_whole(x, 0, 9) for x in (True, 1.0, "1", -1, 10, 10**400))
    assert shown(10**5000) == "a value too large to show (int)"
    assert len(shown("x" * 100)) == 60
    assert safe_relative_path("domains/größe.safetensors")
    assert not any(safe_relative_path(x) for x in ("\ud800", "a\nb", "a\0", "a\u2028b"))

"""Imports point one way, from stage to stage and from room to room; the runtime needs no torch."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from functools import cache
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "runtime": {"runtime"},
    "trainer": {"trainer", "runtime"},
    "exporter": {"exporter", "trainer", "runtime"},
    "benchmarks": {"benchmarks", "exporter", "trainer", "runtime"},
}
# The rooms of each stage from the ground up: a room imports only what stands before it.
ROOMS = {
    "runtime": (
        "errors base bundle images graph tensorrt backends model measure "
        "batching protocol serve cli"
    ).split(),
    "trainer": (
        "config processes data backbone channels methods network cost pruning score learning "
        "run cli"
    ).split(),
    "exporter": "options tables slim counts graph bundle verify triton training api cli".split(),
    "benchmarks": (
        "backbones random_bundle cost peers gpu learning serving report demo reproduce cli "
        "suite __main__"
    ).split(),
}
MOST_ENTRIES, MOST_LINES = 13, 300
MOST_IN_TESTS = 12


@cache
def imports(path: Path) -> list[ast.Import | ast.ImportFrom]:
    """All of a file's, at its top and within its functions."""
    nodes = ast.walk(ast.parse(path.read_text("utf-8")))
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in imports(path):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        else:
            assert node.level == 0, f"{path} imports relatively"
            names.add(node.module or "")
    return names


@pytest.mark.parametrize("stage", MAY_IMPORT)
def test_a_stage_imports_only_what_comes_before_it(stage: str) -> None:
    files = list((ROOT / stage).rglob("*.py"))
    assert files
    for path in files:
        for name in imported(path):
            if name.startswith("prunion."):
                assert name.split(".")[1] in MAY_IMPORT[stage], f"{path.name} imports {name}"


@pytest.mark.parametrize("stage", ROOMS)
def test_a_room_imports_only_what_stands_below_it(stage: str) -> None:
    order = ROOMS[stage]
    places = {p.stem for p in (ROOT / stage).iterdir() if p.suffix == ".py" or p.is_dir()}
    assert places - {"__init__", "__pycache__"} == set(order)
    for path in (ROOT / stage).rglob("*.py"):
        room = path.relative_to(ROOT / stage).parts[0].removesuffix(".py")
        if room == "__init__":
            continue
        below = order[: order.index(room) + 1]
        for name in imported(path):
            parts = name.split(".")
            if parts[:2] == ["prunion", stage]:
                assert len(parts) > 2, f"{path} imports the whole stage: name the room"
                assert parts[2] in below, f"{path} imports {name}, which stands above it"


@cache
def stub_names(folder: Path) -> dict[str, str]:
    """The public names of a room, and the file of the room that each comes from."""
    stub = folder / "__init__.pyi"
    if not stub.is_file():
        return {}
    lines = [x for x in ast.parse(stub.read_text("utf-8")).body if isinstance(x, ast.ImportFrom)]
    return {alias.name: x.module or "" for x in lines for alias in x.names}


def home(module: str, name: str) -> str:
    """The file that `name` comes from, through the rooms that hand it on."""
    place = ROOT.joinpath(*module.split(".")[1:])
    if (place / name).is_dir() or (place / f"{name}.py").is_file():
        return f"{module}.{name}"
    handed_on = stub_names(place).get(name)
    return home(f"{module}.{handed_on}", name) if handed_on else module


def test_no_two_files_need_each_other() -> None:
    """Not through others either, nor within a function or for a type alone."""
    needs: dict[str, set[str]] = {}
    for path in (path for stage in ROOMS for path in (ROOT / stage).rglob("*.py")):
        module = ".".join(["prunion", *path.relative_to(ROOT).with_suffix("").parts])
        needs[module] = {
            home(node.module or "", alias.name)
            for node in imports(path)
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prunion.")
            for alias in node.names
        }
    TopologicalSorter(needs).prepare()  # fails with the files that do


@pytest.mark.parametrize("stage", ROOMS)
def test_outside_a_room_only_its_public_names_are_used(stage: str) -> None:
    for path in (ROOT / stage).rglob("*.py"):
        own = path.relative_to(ROOT).parts[:2]
        for node in imports(path):
            if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith(
                "prunion."
            ):
                continue
            parts = (node.module or "").split(".")[1:]
            folder = ROOT.joinpath(*parts[:2])
            if tuple(parts[:2]) == own or not folder.is_dir() or len(parts) < 2:
                continue
            assert len(parts) == 2, f"{path}: import from prunion.{'.'.join(parts[:2])}"
            assert isinstance(node, ast.ImportFrom)
            for alias in node.names:
                assert alias.name in stub_names(folder), f"{path}: {alias.name} is not public"


@pytest.mark.parametrize("stage", ROOMS)
def test_no_public_name_is_that_of_a_file_beside_it(stage: str) -> None:
    for stub in (ROOT / stage).rglob("__init__.pyi"):
        beside = {p.stem for p in stub.parent.iterdir()}
        shadowed = beside & set(stub_names(stub.parent)) - {"__init__"}
        assert not shadowed, f"{stub}: which is meant, the file or what it holds? {shadowed}"


def test_every_public_name_is_found() -> None:
    pytest.importorskip("torch")
    pytest.importorskip("onnx")
    for stage in ROOMS:
        for stub in (ROOT / stage).rglob("__init__.pyi"):
            name = ".".join(["prunion", *stub.parent.relative_to(ROOT).parts])
            module = importlib.import_module(name)
            assert set(module.__all__) == set(stub_names(stub.parent)), name
            for public in module.__all__:
                assert getattr(module, public) is not None, f"{name}.{public}"


@pytest.mark.parametrize("place", [*ROOMS, "tests"])
def test_a_folder_can_be_taken_in_at_a_glance(place: str) -> None:
    most = MOST_IN_TESTS if place == "tests" else MOST_ENTRIES
    for folder in [ROOT / place, *(p for p in (ROOT / place).rglob("*") if p.is_dir())]:
        if folder.name != "__pycache__":
            shown = [p.name for p in folder.iterdir() if not p.name.startswith("__init__.")]
            assert len(set(shown) - {"__pycache__"}) <= most, f"{folder}: which room is missing?"
    for path in (ROOT / place).rglob("*.py"):
        assert len(path.read_text("utf-8").splitlines()) <= MOST_LINES, path


def test_the_runtime_never_imports_torch() -> None:
    for path in (ROOT / "runtime").rglob("*.py"):
        assert not {n.split(".")[0] for n in imported(path)} & {"torch", "torchvision", "timm"}
    code = "import prunion.runtime as r, sys; r.load; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_nothing_is_pickled() -> None:
    for stage in MAY_IMPORT:
        for path in (ROOT / stage).rglob("*.py"):
            assert "pickle" not in imported(path)
            text = path.read_text("utf-8")
            if "torch.load(" in text:
                assert text.count("torch.load(") == text.count("weights_only=True"), path

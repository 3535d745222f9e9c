"""The wheel holds every package of the tree, and type checkers read it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
STAGES = ("benchmarks", "exporter", "runtime", "trainer")
USES = """
from prunion import BundleError, __version__, bench, export, load, train, verify
import prunion.runtime

reveal_type(load)
reveal_type(train)
reveal_type(prunion.runtime.open_bundle)
"""


def copied_tree(folder: Path, *, links: bool) -> Path:
    """The files that a build reads; without links as where git could not make them."""
    skip = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for name in (*STAGES, "src"):
        shutil.copytree(ROOT / name, folder / name, symlinks=True, ignore=skip)
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copyfile(ROOT / name, folder / name)
    if not links:
        for stage in STAGES:
            link = folder / "src" / "prunion" / stage
            link.unlink()
            link.write_text(f"../../{stage}")  # what git writes instead
    return folder


def built_wheel(tree: Path) -> Path:
    code = "import setuptools.build_meta as m, sys; print(m.build_wheel(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "dist"], cwd=tree, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    return wheel


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built_wheel(copied_tree(tmp_path_factory.mktemp("linked"), links=True))


def held(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


def test_it_holds_every_module_of_the_tree(wheel: Path) -> None:
    package = ("__init__.py", "__init__.pyi", "__main__.py", "py.typed")
    wanted = {f"prunion/{name}" for name in package}
    for stage in STAGES:
        for path in (ROOT / stage).rglob("*.*"):
            if path.suffix in (".py", ".pyi", ".proto", ".html", ".css", ".js"):
                wanted.add("prunion/" + path.relative_to(ROOT).as_posix())
    assert held(wheel) == wanted


def test_a_checkout_without_links_makes_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    assert held(built_wheel(copied_tree(tmp_path, links=False))) == held(wheel)


@pytest.mark.parametrize("place", ["wheel", pytest.param("checkout", marks=pytest.mark.thorough)])
def test_mypy_reads_the_types(place: str, wheel: Path, tmp_path: Path) -> None:
    pytest.importorskip("mypy")
    (tmp_path / "uses.py").write_text(USES)
    venv.create(tmp_path / "venv", with_pip=False)  # nothing in it: quick, and no torch to read
    if place == "wheel":
        site = next((tmp_path / "venv").glob("[lL]ib/**/site-packages"))
        zipfile.ZipFile(wheel).extractall(site)
    python = "Scripts/python.exe" if sys.platform == "win32" else "bin/python"
    options = ["--config-file=", "--ignore-missing-imports", "--follow-imports=silent"]
    options += ["--python-executable", str(tmp_path / "venv" / python)]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, "--cache-dir", "cache", "uses.py"],
        cwd=tmp_path,
        env={"MYPYPATH": str(ROOT / "src")} if place == "checkout" else {},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    shown = [line for line in done.stdout.splitlines() if "Revealed" in line]
    for line, name in zip(shown, ("model.Model", "RunResult", "folder.Bundle"), strict=True):
        assert name in line


@pytest.mark.parametrize(
    ("system", "machine", "wanted"),
    [
        ("linux", "x86_64", True),
        ("win32", "AMD64", True),
        ("darwin", "arm64", False),
        ("linux", "aarch64", False),
    ],
)
def test_all_installs_where_there_is_no_tensorrt_rtx(
    system: str, machine: str, wanted: bool
) -> None:
    requirements = pytest.importorskip("packaging.requirements")
    text = (ROOT / "pyproject.toml").read_text("utf-8")
    listed = re.findall(r'"(.*)"', re.findall(r"^all = \[(.*?)^\]", text, re.M | re.S)[0])
    here = {"sys_platform": system, "platform_machine": machine}
    found = [requirements.Requirement(x) for x in listed]
    extras = {x for r in found if not r.marker or r.marker.evaluate(here) for x in r.extras}
    assert ("tensorrt-rtx" in extras) is wanted
    assert {"train", "ort", "serve"} <= extras

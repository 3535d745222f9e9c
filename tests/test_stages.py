"""Imports point one way, and the runtime needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "runtime": {"runtime"},
    "trainer": {"trainer", "runtime"},
    "exporter": {"exporter", "trainer", "runtime"},
    "benchmarks": {"benchmarks", "exporter", "trainer", "runtime"},
}


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
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

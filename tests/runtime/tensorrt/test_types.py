"""What the runtime calls of TensorRT is there, with these arguments, by tensorrt-stubs (10.13)."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
FILES = ("build", "layers", "library", "session")
STUBS = find_spec("tensorrt_stubs")


def repaired(text: str) -> str:
    """The published stubs, whose last two slips keep type checkers from reading them."""
    text = re.sub(r"\bin: ", "in_: ", text)  # a keyword as a parameter's name
    return text.replace(
        "Weights = None, channel_axis: int)", "Weights = None, channel_axis: int = 0)"
    )


def write_stubs(folder: Path) -> None:
    """`tensorrt` as mypy finds it on its path."""
    assert STUBS is not None and STUBS.origin is not None
    bindings = Path(STUBS.origin).parents[1] / "tensorrt_bindings" / "tensorrt.pyi"
    for name in ("tensorrt", "tensorrt_bindings"):
        (folder / name).mkdir()
    (folder / "tensorrt" / "__init__.pyi").write_text("from tensorrt_bindings.tensorrt import *")
    (folder / "tensorrt_bindings" / "__init__.pyi").write_text("")
    text = repaired(bindings.read_text("utf-8"))
    (folder / "tensorrt_bindings" / "tensorrt.pyi").write_text(text, "utf-8")


def complaints(folder: Path) -> list[str]:
    """What mypy says of the files in `folder/prunion/runtime` that speak to TensorRT."""
    modules = [option for name in FILES for option in ("-m", f"prunion.runtime.tensorrt.{name}")]
    options = ["--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(folder / "cache")]
    done = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *modules],
        capture_output=True,
        text=True,
        cwd=folder,
        env={"MYPYPATH": str(folder), "PATH": "/usr/bin:/bin"},
        check=False,
    )
    assert "Found" in done.stdout or "Success" in done.stdout, done.stdout + done.stderr
    assert "[syntax]" not in done.stdout, done.stdout
    return [line for line in done.stdout.splitlines() if ": error:" in line]


@pytest.mark.slow
@pytest.mark.skipif(
    STUBS is None or find_spec("mypy") is None, reason="needs pip install --no-deps tensorrt-stubs"
)
def test_calls_fit_tensorrt(tmp_path: Path) -> None:
    write_stubs(tmp_path)
    (tmp_path / "prunion").mkdir()
    (tmp_path / "prunion" / "__init__.py").write_text("")  # else an installed prunion is checked
    shutil.copytree(ROOT / "runtime", tmp_path / "prunion" / "runtime")
    assert not [line for line in complaints(tmp_path) if "runtime/tensorrt/" in line]
    # The same check must see a wrong name, or it sees nothing.
    place = tmp_path / "prunion" / "runtime" / "tensorrt" / "build.py"
    place.write_text(place.read_text("utf-8").replace("set_memory_pool_limit(", "set_pool("))
    (line,) = (x for x in complaints(tmp_path) if "runtime/tensorrt/" in x)
    assert '"IBuilderConfig" has no attribute "set_pool"' in line

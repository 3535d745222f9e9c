"""The oldest versions that pyproject.toml allows run the whole line."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.support.tiny_run import tiny_run

ROOT = Path(__file__).parents[2]
PYTHON = "3.10"
EXTRAS = "train,export,ort,serve"
SERVED = """
import io, sys
from PIL import Image
from starlette.testclient import TestClient
from prunion import load
from prunion.runtime.serve.http.app import create_app

image = io.BytesIO()
Image.new("RGB", (20, 20)).save(image, "PNG")
client = TestClient(create_app(load(sys.argv[1])))
answer = client.post("/predict/warm", files={"file": ("x.png", image.getvalue(), "image/png")})
assert answer.status_code == 200, answer.text
"""


def run(*command: object, cwd: Path) -> str:
    """The command's standard output; its error output is the message if it fails."""
    done = subprocess.run(
        [str(x) for x in command], cwd=cwd, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.slow
def test_the_line_runs_on_the_lowest_versions_that_are_allowed(tmp_path: Path) -> None:
    """Needs Python 3.10 on this machine and the package index; about two minutes."""
    pytest.importorskip("uv", reason="pip install uv")
    place = tmp_path / "environment"
    run("uv", "venv", "--python", PYTHON, place, cwd=tmp_path)
    python, prunion = place / "bin" / "python", place / "bin" / "prunion"
    lowest = ("--python", python, "--resolution", "lowest-direct")
    run("uv", "pip", "install", *lowest, f"{ROOT}[{EXTRAS}]", "httpx>=0.27", cwd=tmp_path)
    tiny_run(tmp_path)
    run(prunion, "train", "run.toml", "-o", "run", cwd=tmp_path)
    run(prunion, "export", "run", "-o", "m.prunion", "--fp16", "--int8", "--uint8", cwd=tmp_path)
    assert "everything holds" in run(prunion, "verify", "m.prunion", cwd=tmp_path)
    image = tmp_path / "data" / "warm" / "test" / "red" / "0.png"
    arguments = ("predict", "m.prunion", "-d", "warm", image, "--json")
    (row,) = json.loads(run(prunion, *arguments, cwd=tmp_path))
    assert row["class_name"] in {"red", "green"}
    run(python, "-c", SERVED, "m.prunion", cwd=tmp_path)

"""The tutorial runs from top to bottom in Jupyter's own kernel; a notebook trains as all else."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from prunion.runtime.cli import cli
from tests.support.tiny_run import write_domain

pytestmark = pytest.mark.thorough

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")
# Looked for, not imported: a process that has it takes itself for a notebook's kernel.
if importlib.util.find_spec("ipykernel") is None:
    pytest.skip("ipykernel is missing", allow_module_level=True)

ROOT = Path(__file__).parents[2]
TUTORIAL = ROOT / "docs" / "tutorial.ipynb"
# The README's run is of ImageNet's weights, which would be downloaded, and of real images.
SMALL = """
seed = 0
threads = 1
[train]
warmup = 1
ramp = 1
settle = 1
batch_size = 8
"""


# What other tests remember, too: a third of the tutorial's time is torch's exporter.
REMEMBERED = """
from tests.support.remembered import make_tables_once, remember_exports
make_tables_once(setattr)
remember_exports(setattr)
del make_tables_once, remember_exports
"""


def run(notebook: Any, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Run every cell in a kernel of its own that stands in `folder`."""
    begins = folder / ".ipython" / "profile_default" / "startup" / "remembered.py"
    begins.parent.mkdir(parents=True)
    begins.write_text(REMEMBERED)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT / "src"), str(ROOT)]))
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.setenv("IPYTHONDIR", str(folder / ".ipython"))
    client = nbclient.NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
    )
    return client.execute()


def printed(notebook: Any) -> str:
    outputs = [x for cell in notebook.cells for x in cell.get("outputs", ())]
    streams = [x for x in outputs if x.output_type == "stream"]
    assert not any("Warning" in x.text for x in streams), streams
    return "".join(x.text for x in streams if x.name == "stdout")


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("sklearn", "skimage", "matplotlib"):
        pytest.importorskip(package)
    notebook = nbformat.read(TUTORIAL, as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells), "clear its outputs"
    text = printed(run(notebook, tmp_path, monkeypatch))
    assert "3 settle" in text and "1 run left the ramp" in text
    assert (tmp_path / "own.prunion" / "model.onnx").is_file()
    assert (tmp_path / "runs" / "budgets" / "frontier.png").is_file()


@pytest.fixture
def readme(tmp_path: Path) -> tuple[str, str]:
    """The README's run file and program, in a folder with what they name but smaller."""
    text = (ROOT / "README.md").read_text("utf-8")
    (toml,) = re.findall(r"^```toml\n(.*?)^```$", text, re.M | re.S)
    (program,) = re.findall(r"^```python\n(.*?)^```$", text, re.M | re.S)
    toml = toml.replace('name = "resnet18"', 'name = "resnet18"\nweights = "none"\ncut = "layer1"')
    toml = SMALL + toml.replace("size = 64", "size = 16")
    for part in ("train", "test"):
        toml = toml.replace(f"signs/{part}.parquet", f"signs/{part}")
    for name in ("flowers", "signs"):
        write_domain(tmp_path / "data" / name, ["red", "green"], 6, len(name))
    for image in ("rose.jpg", "stop.png"):
        Image.new("RGB", (20, 20), (200, 40, 40)).save(tmp_path / image)
    (tmp_path / "run.toml").write_text(toml, "utf-8")
    return text, program


@pytest.mark.parametrize("place", ["python", "notebook"])
def test_the_readmes_example_gives_the_same_bytes_everywhere(
    place: str,
    tmp_path: Path,
    readme: tuple[str, str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """From the command line, and from Python or in a notebook, whose kernel is a new process."""
    text, program = readme
    (command,) = re.findall(r"^    prunion (train run.toml -o runs/first)$", text, re.M)
    assert '"runs/first"' in program
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, command.split())
    assert done.exit_code == 0, done.output
    (tmp_path / "runs" / "first").rename(tmp_path / "runs" / "command")
    if place == "python":
        capsys.readouterr()
        exec(program, {})
        told = capsys.readouterr().out
    else:
        notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(program)])
        told = printed(run(notebook, tmp_path, monkeypatch))
    assert told.split()[0] == "flowers"
    folders = [tmp_path / "runs" / name / "checkpoint" for name in ("command", "first")]
    expected, other = ({x.name: x.read_bytes() for x in f.iterdir()} for f in folders)
    assert json.loads(expected["checkpoint.json"])["domains"][0]["name"] == "flowers"
    assert other == expected

"""A network of the user's own: only training ever sees the code that made it."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from prunion.runtime.cli import cli
from prunion.runtime.errors import CheckpointError
from prunion.trainer.config import load_config
from prunion.trainer.network import load_checkpoint
from prunion.trainer.run import train_run
from tests.support.tiny_run import tiny_run, write_domain

NET = """
import torch
from torch import nn

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)

    def forward(self, x):
        return (x + self.bn(self.conv(x))).relu()

class Net(nn.Module):
    def __init__(self, width, depth):
        super().__init__()
        self.stem, self.bn = nn.Conv2d(3, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width)
        self.blocks = nn.Sequential(*(Block(width) for _ in range(depth)))
        self.end, self.last = nn.Conv2d(width, 32, 1, bias=False), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 1000)

    def forward(self, x):
        x = self.blocks(self.bn(self.stem(x)).relu())
        return self.head(self.last(self.end(x)).relu().mean((2, 3)))

def make_net(width=8, depth=1):
    return Net(width, depth)
"""
BACKBONE = """
source = "python"
name = "their_nets:make_net"
arguments = { width = 16, depth = 2 }
"""
LATER = """
[train]
warmup = 1
ramp = 1
settle = 1
batch_size = 8
[domains.late]
train = "late/train"
test = "late/test"
"""


def python_run(folder: Path, **train: object) -> Path:
    """The tiny run with a network of a file beside it."""
    path = tiny_run(folder, **train)
    text = path.read_text()
    start, end = text.index("source ="), text.index("[input]")
    path.write_text(text[:start] + BACKBONE + text[end:])
    (folder / "their_nets.py").write_text(NET)
    return path


def prunion(*arguments: object, cwd: Path) -> str:
    """The command, from a folder that has no such module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        done = CliRunner().invoke(cli, [str(x) for x in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_later_commands_need_no_code(tmp_path: Path) -> None:
    home, away = tmp_path / "home", tmp_path / "away"
    home.mkdir()
    away.mkdir()
    train_run(load_config(python_run(home)), away / "run", run_file=home / "run.toml")
    (home / "their_nets.py").unlink()
    shutil.rmtree(home / "__pycache__", ignore_errors=True)
    for name in [x for x in sys.modules if x.startswith("their_nets")]:
        del sys.modules[name]
    prunion("export", "run", "-o", "m.prunion", "--torch", cwd=away)
    assert "everything holds" in prunion("verify", "m.prunion", cwd=away)
    image = home / "data" / "warm" / "test" / "red" / "0.png"
    (row,) = json.loads(prunion("predict", "m.prunion", "-d", "warm", image, "--json", cwd=away))
    assert row["class_name"] in ("red", "green")
    write_domain(away / "late", ["red", "blue"], 8, 2)
    (away / "late.toml").write_text(LATER)
    prunion("add-domain", "run", "late.toml", "-o", "late.safetensors", cwd=away)
    pack = ("--pack", "late.safetensors", "-d", "late")
    (row,) = json.loads(prunion("predict", "m.prunion", *pack, image, "--json", cwd=away))
    assert row["class_name"] in ("red", "blue")
    from prunion.exporter.slim.files import load_slim

    assert load_slim(away / "m.prunion" / "torch").trunk


def test_a_stopped_run_goes_on_without_the_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from prunion.trainer.run.folder import states

    config = load_config(python_run(tmp_path))
    train_run(config, tmp_path / "whole")

    save, saved = states.save_snapshot, []

    def save_twice(*arguments: object) -> None:
        save(*arguments)
        saved.append(1)
        if len(saved) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(states, "save_snapshot", save_twice)
    with pytest.raises(KeyboardInterrupt):
        train_run(config, tmp_path / "run")
    (tmp_path / "their_nets.py").unlink()
    train_run(load_config(tmp_path / "run.toml"), tmp_path / "run", resume=True)
    for name in ("model.safetensors", "units.json", "graph.json"):
        whole, again = (tmp_path / run / "checkpoint" / name for run in ("whole", "run"))
        assert whole.read_bytes() == again.read_bytes()


def test_a_checkpoint_of_an_earlier_version_is_read_by_name(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "old"
    shutil.copytree(tiny / "checkpoint", folder)
    meta = json.loads((folder / "checkpoint.json").read_text())
    del meta["graph_sha256"]
    (folder / "graph.json").unlink()
    (folder / "checkpoint.json").write_text(json.dumps(meta))
    assert load_checkpoint(folder).net.graph == load_checkpoint(tiny).net.graph
    # A file that asks for a user's function gets none, whatever lies on the path.
    meta["config"]["backbone"] = {"source": "python", "name": "json:loads"}
    (folder / "checkpoint.json").write_text(json.dumps(meta))
    with pytest.raises(CheckpointError, match=r"graph.json is missing, and only a function"):
        load_checkpoint(folder)

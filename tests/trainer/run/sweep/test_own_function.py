"""A sweep over a network of the user's own function, which may change or go meanwhile."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunion.runtime.errors import PrunionError, StoppedError
from prunion.trainer.config import RunConfig, load_config
from prunion.trainer.learning import Training
from prunion.trainer.run import train_sweep
from tests.support.tiny_run import tiny_run

NET = """
from torch import nn


def make_net():
    def layer(width_in, width):
        return nn.Sequential(
            nn.Conv2d(width_in, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
        )

    return nn.Sequential(layer(3, 16), layer(16, 16), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


def configs(folder: Path) -> list[RunConfig]:
    run_file = tiny_run(folder, warmup=1, ramp=1, settle=1)
    text = run_file.read_text()
    start, end = text.index("[backbone]"), text.index("[input]")
    own = '[backbone]\nsource = "python"\nname = "net.py:make_net"\n'
    run_file.write_text(text[:start] + own + text[end:])
    (folder / "net.py").write_text(NET)
    return [load_config(run_file, [f"budget.limit={limit}"]) for limit in (0.8, 0.4)]


def graphs(out: Path) -> set[str]:
    return {path.read_text() for path in out.glob("seed-*/graph.json")}


def test_a_function_that_is_edited_meanwhile_does_not_mix_two_networks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs, out = configs(tmp_path), tmp_path / "out"
    epochs: list[int] = []
    run_epoch = Training.run_epoch

    def counted(self: Training, *rest: object) -> None:
        if len(epochs) == 3:
            raise StoppedError("behind the ramp", 143)
        epochs.append(self.epoch)
        run_epoch(self, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Training, "run_epoch", counted)
        with pytest.raises(StoppedError):
            train_sweep(runs, out)
    assert not (out / "seed-3-budget-0.8").exists()
    assert list(out.glob("fork.*.safetensors"))  # from which it is to begin
    (tmp_path / "net.py").write_text(NET.replace("ReLU", "GELU"))
    train_sweep(runs, out, resume=True)
    assert len(graphs(out)) == 1
    assert "relu" in graphs(out).pop()


def test_runs_that_are_begun_need_neither_the_function_nor_advice_that_removes_the_others(
    tmp_path: Path,
) -> None:
    runs, out = configs(tmp_path), tmp_path / "out"
    train_sweep(runs, out)
    place = out / "seed-3-budget-0.8"
    before = json.loads((place / "record.json").read_text())["result"]["accuracy"]
    (place / "record.json").unlink()
    (tmp_path / "net.py").unlink()
    train_sweep(runs, out, resume=True)
    assert json.loads((place / "record.json").read_text())["result"]["accuracy"] == before
    (place / "record.json").unlink()
    (place / "state.safetensors").unlink()
    with pytest.raises(PrunionError, match=r"resume from: remove that folder to train it again$"):
        train_sweep(runs, out, resume=True)

"""A run goes on without what only its beginning needed, and with its own file of before."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunion import train
from prunion.runtime.errors import ConfigError, StoppedError
from prunion.trainer.config import keep_run_file, load_config
from prunion.trainer.learning import Training
from tests.support.tiny_run import tiny_run

NET = """
from torch import nn


def make_net():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1, bias=False),
        nn.BatchNorm2d(16),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )
"""


@pytest.mark.parametrize("tables", [True, False])
def test_it_needs_no_file_of_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tables: bool
) -> None:
    run_file, weights = tiny_run(tmp_path, warmup=1, ramp=1, settle=0), tmp_path / "w.safetensors"
    (tmp_path / "net.py").write_text(NET, "utf-8")
    model = nn.Sequential(nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16))
    torch.manual_seed(0)
    save_file(model.state_dict(), weights)
    text = run_file.read_text("utf-8")
    start, end = text.index("[backbone]"), text.index("[input]")
    own = '[backbone]\nsource = "python"\nname = "net.py:make_net"\nweights = "w.safetensors"\n'
    run_file.write_text(text[:start] + own + text[end:], "utf-8")
    asked = load_config(run_file).to_json() if tables else run_file  # a program's leave no file
    run_epoch, out = Training.run_epoch, tmp_path / "out"

    def once(self: Training, *rest: object) -> None:
        if self.epoch:
            raise StoppedError("after an epoch", 143)
        run_epoch(self, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(Training, "run_epoch", once)
        with pytest.raises(StoppedError):
            train(asked, out)
    weights.unlink()
    with pytest.raises(ConfigError, match="which is not a file"):
        train(asked, tmp_path / "other")
    assert train(asked, out, resume=True).folder == out


@pytest.mark.parametrize(
    ("told", "train"),
    [
        ("switch_every", {"order": "epoch", "switch_every": 4}),
        ("taps_lambda", {"method": "taps", "ramp": 0, "taps_lambda": 0.5}),
        ("distillation", {"distillation": 0.25}),
    ],
)
def test_a_key_that_an_earlier_prunion_took_goes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, told: str, train: dict[str, object]
) -> None:
    keys = {key: f'"{x}"' if isinstance(x, str) else x for key, x in train.items()}
    run_file = tiny_run(tmp_path, **keys)
    with pytest.raises(ConfigError, match=rf"{told} is .*; remove {told}$"):
        load_config(run_file)
    config = load_config(run_file, begun=True)
    assert caplog.messages == [f"[train] {told}: says nothing beside the other keys, and goes"]
    kept = {key: x for key, x in keys.items() if key != told}
    assert config == load_config(tiny_run(tmp_path, **kept))
    copy = tmp_path / "copy.toml"
    tiny_run(tmp_path, **keys)
    keep_run_file(run_file, config, copy)  # of the same run, for whoever trains it anew
    lines = copy.read_text("utf-8").splitlines()
    options = [x.removeprefix("#   --set ") for x in lines if x.startswith("#   --set ")]
    assert load_config(copy, [shlex.split(option)[0] for option in options]) == config

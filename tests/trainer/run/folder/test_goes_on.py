"""A run goes on without what only its beginning needed, and with its own file of before."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from prunion import train
from prunion.runtime.errors import CheckpointError, ConfigError, PrunionError, StoppedError
from prunion.trainer.config import keep_run_file, load_config
from prunion.trainer.learning import Training
from prunion.trainer.run import train_run, train_sweep
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


@pytest.mark.parametrize(
    ("train", "alone", "said"),
    [
        ({"method": '"series"'}, False, ""),
        ({"method": '"parallel"', "adapter_rank": 2}, True, ""),
        ({"adapter_rank": 2}, True, "finish the run with the prunion that began it, or start it"),
        ({"adapter_rank": 2}, False, "another network, other prices"),  # a bundle holds them
        ({"method": '"norms"'}, False, "another network, other prices"),
    ],
)
def test_adapters_that_were_counted_otherwise(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    train: dict[str, object],
    alone: bool,
    said: str,
) -> None:
    run_file = tiny_run(tmp_path, **{"warmup": 1, "ramp": 0, "settle": 0, **train})
    if alone:
        text = run_file.read_text("utf-8")
        run_file.write_text(text.partition("[domains.cold]")[0], "utf-8")
    config, out = load_config(run_file), tmp_path / "out"
    cost = train_run(config, out).budget["value"]
    state = out / "state.safetensors"
    with safe_open(state, framework="pt") as file:
        meta = json.loads(file.metadata()["prunion"])
    meta["made_by"]["cost"][0] += 422
    save_file(load_file(state), state, {"prunion": json.dumps(meta)})
    if said:
        with pytest.raises(CheckpointError, match=said):
            train_run(config, out, resume=True)
        return
    assert train_run(config, out, resume=True).budget["value"] == cost
    assert "earlier prunion, which counted adapters otherwise" in caplog.text


def test_a_sweep_of_before_is_left_where_it_is(tmp_path: Path) -> None:
    run_file = tiny_run(tmp_path, warmup=0, ramp=1, settle=0, adapter_rank=2)
    runs = [load_config(run_file, [f"budget.limit={limit}"]) for limit in (0.6, 0.8, 0.9)]
    train_sweep(runs[:2], tmp_path / "out")
    for record in (tmp_path / "out").glob("seed-*/record.json"):
        value = json.loads(record.read_text("utf-8"))
        value["made_by"]["cost"] += 422
        record.write_text(json.dumps(value), "utf-8")
    with pytest.raises(PrunionError, match="give another -o, which keeps these results"):
        train_sweep(runs, tmp_path / "out", resume=True)

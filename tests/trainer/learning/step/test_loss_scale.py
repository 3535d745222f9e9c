"""Half precision: a scale that is found, steps left out together, devices that have none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from prunion.runtime.errors import ConfigError, PrunionError
from prunion.trainer.config import TrainConfig, load_config
from prunion.trainer.learning.step.loss_scale import PATIENCE, START, LossScale, autocast_of
from prunion.trainer.processes import ALONE, Processes, device_named
from prunion.trainer.run import train as train_module
from prunion.trainer.run import train_run
from tests.support.tiny_run import tiny_run


class Others(Processes):
    """Two processes, of which the other one's gradients overflow."""

    def any(self, flag: bool) -> bool:
        return True


def test_a_scale_is_halved_where_gradients_overflow_and_doubled_after_a_while() -> None:
    scale = LossScale("fp16")
    small, large = torch.full((3,), START), torch.tensor([1.0, float("inf")])
    assert scale.unscale([small, None]) and small.tolist() == [1.0] * 3
    assert not scale.unscale([small, large])
    assert not scale.unscale([torch.tensor([float("nan")])])
    assert not scale.takes(ALONE, finite=False, where="step 0")
    assert scale.value == START / 2
    for _ in range(PATIENCE):
        assert scale.takes(ALONE, finite=True, where="step 1")
    assert scale.state() == [START, 0]
    assert not scale.takes(Others(), finite=True, where="step 2")  # all leave it out
    again = LossScale("fp16")
    again.restore(scale.state())
    assert again.value == scale.value == START / 2
    with pytest.raises(PrunionError, match="step 3: gradients overflow in float16"):
        for _ in range(100):
            scale.takes(ALONE, finite=False, where="step 3")


def test_other_precisions_have_no_scale() -> None:
    scale, inf = LossScale("bf16"), torch.tensor([float("inf")])
    assert scale.unscale([inf]) and scale.takes(ALONE, finite=True, where="")
    assert scale.value == 1.0 and not scale.works
    kinds = []
    for precision in ("fp32", "bf16", "fp16"):
        with autocast_of(torch.device("cpu"), precision):  # type: ignore[arg-type]
            kinds.append((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
    assert kinds == [torch.float32, torch.bfloat16, torch.float16]


def test_a_device_without_it_is_refused_in_plain_words(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match='precision is "fp16", and the run is on a CPU'):
        device_named("cpu", TrainConfig(precision="fp16"))
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(PrunionError, match='device = "mps", but torch sees no Apple GPU'):
        device_named("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_named("mps", TrainConfig(precision="fp16")) == "mps"
    with pytest.raises(ConfigError, match="counts in float64, and an Apple GPU has none"):
        device_named("mps", TrainConfig(granularity="slice", trunk="frozen"))
    monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda *_: False)
    with pytest.raises(ConfigError, match='"bf16", which an Apple GPU has from macOS 14 on'):
        device_named("mps", TrainConfig(precision="bf16"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="cannot share an Apple GPU"):
        device_named("mps")


@pytest.mark.parametrize("cuda", [False, True])
def test_auto_takes_no_device_that_nobody_has_tried(
    cuda: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_named("auto", TrainConfig()) == ("cuda" if cuda else "cpu")


def test_a_run_in_half_precision_learns_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CPU, which computes float16 too, if slowly."""
    run_file = tiny_run(tmp_path, warmup=1, ramp=1, settle=1, precision='"fp16"', switch_every=1)
    config, out = load_config(run_file, ["input.size=8"]), tmp_path / "out"
    with pytest.raises(ConfigError, match="on a CPU"):
        train_run(config, out)
    assert not out.exists()
    monkeypatch.setattr(train_module, "device_named", lambda name, train: "cpu")
    result = train_run(config, out)
    assert result.budget["met"]
    figures = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
    losses = [x["loss/warm"] + x["loss/cold"] for x in figures if "cost" in x]
    assert losses[-1] < losses[0]
    with safe_open(out / "state.safetensors", framework="pt") as file:
        value, steps = json.loads(file.metadata()["prunion"])["loss_scale"]
    assert value <= START and steps > 0

"""A run whose milliseconds are one profile's does not go on by another's."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from prunion.runtime.bundle import Profile, read_profile, write_profile
from prunion.runtime.errors import CheckpointError, PrunionError
from prunion.trainer.config import STATE, RunConfig, load_config
from prunion.trainer.network import build_network
from prunion.trainer.run import train_run, train_sweep
from tests.support.tiny_run import tiny_run
from tests.trainer.cost.test_latency import made_up


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, Profile]:
    """Of a finished run in `out`, beside the profile whose milliseconds it was to halve."""
    folder = tmp_path_factory.mktemp("timed")
    path = tiny_run(folder, warmup=1, ramp=0, settle=0)
    config = load_config(path)
    net = build_network(config.backbone, config.input.size, [2, 3])
    profile = made_up(net.units.table)
    write_profile(folder / "device.json", profile)
    text = path.read_text("utf-8").replace('"params"', '"latency"\nprofile = "device.json"')
    path.write_text(text, "utf-8")
    config = load_config(path)
    train_run(config, folder / "out")
    return config, profile


@pytest.fixture
def timed(begun: tuple[RunConfig, Profile], tmp_path: Path) -> tuple[RunConfig, Path]:
    """The same run, and a copy of its folder; its profile is as it was."""
    config, profile = begun
    device = Path(config.budget.profile)
    write_profile(device, profile)
    shutil.copytree(device.parent / "out", tmp_path / "seed-3-budget-0.5")
    return config, tmp_path / "seed-3-budget-0.5"


def measure_again(config: RunConfig) -> None:
    """Replace the profile by one in which the whole network alone takes as long as before."""
    path = Path(config.budget.profile)
    profile = read_profile(path)
    for grid in profile.grids:
        grid.ms[0, 0] /= 2
    write_profile(path, replace(profile, machine={"cpu": "another"}))


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (folder / "checkpoint").iterdir()}


def test_a_run_keeps_to_the_profile_that_it_began_with(timed: tuple[RunConfig, Path]) -> None:
    """One of the same whole price passed, and a finished run's account was exchanged."""
    config, out = timed
    before = files(out)
    measure_again(config)
    with pytest.raises(CheckpointError, match=r"another profile .*made up, CPU.*is .*another, CPU"):
        train_run(config, out, resume=True)
    assert files(out) == before
    shutil.copyfile(out / "checkpoint" / "profile.json", config.budget.profile)
    assert train_run(config, out, resume=True).budget["device"].startswith("made up")


def test_a_state_without_a_note_goes_on(timed: tuple[RunConfig, Path]) -> None:
    """An earlier prunion noted the whole network's price alone."""
    config, out = timed
    state = out / STATE
    with safe_open(state, framework="pt") as file:
        meta = json.loads(file.metadata()["prunion"])
    del meta["made_by"]["profile"]
    save_file(load_file(state), state, {"prunion": json.dumps(meta)})
    assert train_run(config, out, resume=True).budget["met"]


def test_runs_of_two_profiles_are_no_sweep_and_leave_each_other_no_state(
    timed: tuple[RunConfig, Path], tmp_path: Path
) -> None:
    config, place = timed
    other = replace(config, budget=replace(config.budget, limit=0.8))
    measure_again(config)
    with pytest.raises(PrunionError, match="another profile of its device"):
        train_sweep([config, other], tmp_path, resume=True)
    with pytest.raises(CheckpointError, match="another profile of its device"):
        train_run(other, tmp_path / "fork", start=place / STATE, start_of=place)

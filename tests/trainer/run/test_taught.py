"""A teacher that has learned from images that its pupil holds out is told of."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prunion.trainer.config import RunConfig, load_config
from prunion.trainer.run import check_run, train_run
from tests.support.tiny_run import tiny_run

DRAW = {"holdout": 0.25, "validation_holdout": 0.25}


def drawn(config: RunConfig, **shares: float) -> RunConfig:
    warm, cold = config.domains
    return replace(config, domains=(replace(warm, test=(), **{**DRAW, **shares}), cold))


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("taught")
    train_run(drawn(load_config(tiny_run(folder, warmup=1, ramp=0, settle=0))), folder / "out")
    return folder


@pytest.mark.parametrize(
    ("seed", "shares", "told"),
    [
        (3, {}, ""),
        (3, {"validation_holdout": 0.0}, ""),
        (3, {"holdout": 0.5, "validation_holdout": 0.0}, "tests warm with"),
        (3, {"holdout": 0.125}, "validates warm with"),  # from what the other draw leaves
        (3, {"validation_holdout": 0.5}, "validates warm with"),
        (4, {}, "tests warm with and validates warm with"),
    ],
)
def test_what_a_seed_and_a_share_hold_out(
    seed: int, shares: dict[str, Any], told: str, teacher: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pupil = drawn(load_config(teacher / "run.toml"), **shares)
    taught = replace(pupil.train, teacher=str(teacher / "out"))
    check_run(replace(pupil, seed=seed, train=taught))
    assert f"from images that this run {told}, whose" in caplog.text or not told
    assert ("has learned from images" in caplog.text) == bool(told)


@pytest.mark.parametrize("place", ["out", "out/checkpoint"])
def test_images_that_came_since_change_the_draw(
    place: str, teacher: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the teacher's seed and share it had learned from half of them, and nothing was said."""
    config = drawn(load_config(tiny_run(tmp_path, warmup=1, ramp=0, settle=0)))
    pupil = replace(config, train=replace(config.train, teacher=str(teacher / place)))
    check_run(pupil)
    assert "has learned from images" not in caplog.text
    red = tmp_path / "data" / "warm" / "train" / "red"
    shutil.copy(red / "0.png", red / "000.png")
    check_run(pupil)
    assert "this run tests warm with and validates warm with, whose accuracy" in caplog.text

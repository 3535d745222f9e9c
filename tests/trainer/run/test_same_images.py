"""What is compared, or gone on with, is of the same images; where that is not known, it is said."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from prunion.runtime.errors import CheckpointError, PrunionError
from prunion.trainer.config import RunConfig, load_config
from prunion.trainer.run import train_run, train_sweep, train_with_baseline
from prunion.trainer.score import read_verdict
from tests.support.tiny_run import tiny_run

SHORT = {"warmup": 1, "ramp": 1, "settle": 0}


def swap(part: Path, one: str = "red", other: str = "green") -> None:
    """Let two class folders change places: as many images, and other labels."""
    (part / one).rename(part / "between")
    (part / other).rename(part / one)
    (part / "between").rename(part / other)


def as_bitmaps(folder: Path) -> None:
    """Every image as a file of one size."""
    for path in folder.rglob("*.png"):
        Image.open(path).save(path.with_suffix(".bmp"))
        path.unlink()


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    found = load_config(tiny_run(tmp_path, **SHORT))
    as_bitmaps(tmp_path / "data")
    return found


def test_a_baseline_that_answered_other_test_images_is_not_compared(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    result = train_with_baseline(config, out)
    assert result.verdict is not None and result.verdict.loss is not None
    swap(tmp_path / "data" / "warm" / "test")
    with caplog.at_level(logging.WARNING, "prunion"):
        again = train_run(config, out, resume=True)
    told = [x.getMessage() for x in caplog.records if "was tested on" in x.getMessage()]
    assert told == [
        f"{out} was tested on other test images of warm, as many as before: it is tested again on "
        "those that are there now; its baseline is compared once --baseline --resume has tested "
        "that too"
    ]
    assert again.accuracy_before == {}  # of the other images
    found = read_verdict(out, out / "baseline")
    assert found is not None and found.loss is None and set(found.domains) == {"cold"}
    both = train_with_baseline(config, out, resume=True)
    assert both.verdict is not None and both.verdict.loss is not None


def test_as_many_bytes_under_other_labels_are_other_images(
    config: RunConfig, tmp_path: Path
) -> None:
    train_run(config, tmp_path / "out")
    swap(tmp_path / "data" / "warm" / "train")
    with pytest.raises(CheckpointError, match="other images"):
        train_run(config, tmp_path / "out", resume=True)


def test_a_state_that_noted_names_and_sizes_goes_on_with_a_word(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    train_run(config, tmp_path / "out")
    state = tmp_path / "out" / "state.safetensors"
    with safe_open(state, framework="pt") as file:
        meta = json.loads(file.metadata()["prunion"])
    meta["made_by"]["images"][1] = ["0" * 64, "1" * 64]
    save_file(load_file(state), state, {"prunion": json.dumps(meta)})
    with caplog.at_level(logging.WARNING, "prunion"):
        train_run(config, tmp_path / "out", resume=True)
    assert "too little of the training images of warm, cold" in caplog.text
    meta["made_by"]["images"][0][0] += 1
    save_file(load_file(state), state, {"prunion": json.dumps(meta)})
    with pytest.raises(CheckpointError, match="other images"):
        train_run(config, tmp_path / "out", resume=True)


def test_a_sweep_sets_no_other_images_side_by_side(
    config: RunConfig, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, data = tmp_path / "out", tmp_path / "data"
    configs = [replace(config, budget=replace(config.budget, limit=x)) for x in (0.8, 0.5)]
    first, second = (out / f"seed-3-budget-{limit}" for limit in (0.8, 0.5))
    train_sweep(configs[:1], out)
    for part, told in (
        ("test", "other test images of warm, as many as before"),
        ("train", "other training images of warm, as many as before"),
    ):
        swap(data / "warm" / part)
        with pytest.raises(PrunionError, match=f"{first} is of a run with {told}"):
            train_sweep(configs, out, resume=True)
        swap(data / "warm" / part)
    spare = data / "cold" / "test" / "red" / "0.bmp"
    spare.rename(tmp_path / "spare.bmp")
    with pytest.raises(PrunionError, match=r"other test images of cold \(was 24, is 23\)"):
        train_sweep(configs, out, resume=True)
    assert not second.exists()
    (tmp_path / "spare.bmp").rename(spare)
    with caplog.at_level(logging.WARNING, "prunion"):
        train_sweep(configs, out, resume=True)
    assert not caplog.messages

    # Two finished runs are held against each other, one without digests against nothing.
    record = json.loads((second / "record.json").read_text("utf-8"))
    record["made_by"]["domains"]["warm"]["digests"]["test"] = "images:0"
    (second / "record.json").write_text(json.dumps(record), "utf-8")
    with pytest.raises(PrunionError, match="other test images of warm"):
        train_sweep(configs, out, resume=True)
    del record["made_by"]
    (second / "record.json").write_text(json.dumps(record), "utf-8")
    with caplog.at_level(logging.WARNING, "prunion"):
        train_sweep(configs, out, resume=True)
    assert caplog.messages[-1].startswith(f"{second}: of an earlier prunion")


def test_seeds_that_draw_images_of_their_own_stand_in_one_table(
    config: RunConfig, tmp_path: Path
) -> None:
    held = [replace(domain, test=(), holdout=0.25) for domain in config.domains]
    seeds = [replace(config, seed=seed, domains=tuple(held)) for seed in (0, 1)]
    train_sweep(seeds[:1], tmp_path / "out")
    train_sweep(seeds, tmp_path / "out", resume=True)
    train_sweep(seeds, tmp_path / "out", resume=True)

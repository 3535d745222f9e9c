"""What a bundle says of its INT8 graph's accuracy is measured again, the fp32 graph's too."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from prunion.exporter.verify.compare import check_noted
from prunion.exporter.verify.int8_again import measure_int8_again
from prunion.runtime.bundle import open_bundle
from prunion.trainer.network import load_checkpoint
from tests.exporter.verify.test_every_claim import changed, kind_of, leaves, put

# What is calibrated with, and the loss that is allowed: choices, of which nothing else tells.
CHOSEN = ("max_drop", "calibration_images")


def problems(eight: Path, tiny: Path, folder: Path, change: Callable[[Any], Any]) -> list[str]:
    """Of a copy whose manifest's account of INT8 is changed."""
    bundle = Path(shutil.copytree(eight, folder))
    manifest = json.loads((bundle / "manifest.json").read_text())
    change(manifest["verified"]["variants"]["int8"])
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    opened = open_bundle(bundle)
    again = measure_int8_again(opened, {"fp32", "int8"}, load_checkpoint(tiny))
    return [*check_noted(opened), *again.problems]


def test_every_figure_is_measured_again(eight: Path, tiny: Path, tmp_path: Path) -> None:
    assert problems(eight, tiny, tmp_path / "as it is", lambda _: None) == []
    account = json.loads((eight / "manifest.json").read_text())["verified"]["variants"]["int8"]
    missed = []
    for number, (place, value) in enumerate(leaves(account)):
        kind = kind_of(place)
        if kind.startswith(("max_relative_error", "tolerance", *CHOSEN)):
            continue
        folder = tmp_path / str(number)
        if not problems(eight, tiny, folder, lambda x: put(x, place, changed(kind, value))):  # noqa: B023
            missed.append(kind)
    assert missed == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda x: x.update(accuracy={k: [0.0, 0.0] for k in x["accuracy"]}),
            "accuracy of 0.0% in",
        ),
        (lambda x: x["test_images"].update(warm=9999), "noted 9,999 test images, the run has 16"),
        (lambda x: x["test_images"].pop("warm"), "domain warm: its export noted no number of"),
        (
            lambda x: x["accuracy"].update(hot=[1.0, 1.0]),
            "domain hot: its export noted an accuracy",
        ),
        (lambda x: x["accuracy"].update(warm=[1.0, 0.0]), "and allowed a loss of 20 points"),
    ],
)
def test_what_is_noted_is_what_is_measured(
    eight: Path, tiny: Path, tmp_path: Path, change: Callable[[Any], Any], said: str
) -> None:
    found = problems(eight, tiny, tmp_path / "other", change)
    assert any(said in problem for problem in found), found


def test_a_full_disk_hides_nothing_that_was_measured(
    eight: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("prunion.exporter.verify.int8_again.quantised", full)
    found = problems(eight, tiny, tmp_path / "b", lambda x: x["test_images"].update(warm=999))
    assert any("noted 999 test images" in problem for problem in found)
    assert any("found again ([Errno 28] No space left" in problem for problem in found)


def test_steps_of_other_training_images_are_not_compared(
    eight: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    room = "prunion.exporter.verify.int8_again"
    monkeypatch.setattr(f"{room}.other_parts", lambda domain, _: ["training"])
    monkeypatch.setattr(f"{room}.quantised", pytest.fail)
    again = measure_int8_again(open_bundle(eight), {"fp32", "int8"}, load_checkpoint(tiny))
    assert again.problems == []
    assert "[domains.warm] has other training images than when the run read them" in again.notes[-1]

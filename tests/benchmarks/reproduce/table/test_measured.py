"""Whose accuracy stands in the source's column, and which rows compare with each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prunion.benchmarks.reproduce.archives.images import BenchmarkImages
from prunion.benchmarks.reproduce.rows import chosen_rows
from prunion.benchmarks.reproduce.settings import Reproduction
from prunion.benchmarks.reproduce.sources import TrunkSource
from prunion.benchmarks.reproduce.table.measured import measured_accuracy
from prunion.benchmarks.reproduce.table.table import reproduced_table


def test_the_source_is_what_a_trunk_tells_and_packnet_has_none() -> None:
    """What was given is of weights that do not tell, each network's its own."""
    images = [BenchmarkImages(x, ("a",), ("b",)) for x in ("imagenet12", "dtd")]

    def known(name: str, told: float | None, **given: float) -> float | None:
        asked = Reproduction("decathlon", Path(), Path(), methods=(name,), source_accuracy=given)
        row = next(x for x in chosen_rows(asked) if x.name == name)
        found = measured_accuracy(asked, row, images, {"dtd": 0.5}, TrunkSource("x", told), {})
        assert found["dtd"] == 0.5
        return found.get("imagenet12")

    assert known("norms", 0.4) == known("norms", 0.4, wrn28_4=60.0) == 0.4
    assert known("norms", None, wrn28_4=60.0) == 0.6
    assert known("norms", None, resnet26=60.0) is known("norms", None) is None
    assert known("packnet", 0.4) is None


def test_rows_of_other_images_are_told() -> None:
    def line(row: str, **images: str) -> dict[str, Any]:
        return {
            "key": f"resnet50-{row}-seed0", "row": row, "network": "resnet50", "flop": 1.0,
            "params": 1.0, "params_without_norms": 1.0, "accuracy": {"flowers": 0.5},
            "method": row, "seed": 0, "made_of": {"trunk": "default", "images": images},
        }  # fmt: skip

    def table(*rows: dict[str, Any]) -> str:
        return reproduced_table("imagenet-to-sketch", rows)

    told = "of different images, and compare only with those of the same: "
    one, other = line("feature", flowers="1"), line("norms", flowers="2")
    assert f"{told}`resnet50-feature-seed0`; `resnet50-norms-seed0`." in table(one, other)
    assert told not in table(one, line("norms", flowers="1"))
    assert told not in table(one, {**other, "made_of": None})  # of before: nobody knows

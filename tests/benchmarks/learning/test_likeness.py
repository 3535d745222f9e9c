"""Who chose the channels of a union, and what sharing a network is worth to a group of domains."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from click.testing import CliRunner

from prunion.benchmarks.learning.likeness import chosen_by, main
from prunion.benchmarks.learning.paired import packed
from prunion.trainer.network import load_checkpoint
from tests.support.networks.drawn import drawn_checkpoint


def test_channels_are_counted_by_how_many_chose_them(tmp_path: Path) -> None:
    folder = drawn_checkpoint(tmp_path, "bap")
    net = load_checkpoint(folder).net
    kept = net.switches.amax(0).numpy() > 0
    domains, units = net.switches.shape
    chosen = np.zeros((domains, units), bool)
    first, second, third = np.flatnonzero(kept)[:3]
    chosen[:, first] = True  # by all
    chosen[0, [second, third]] = True  # by one alone
    chosen[:, ~kept] = True  # what was cut does not count
    record = {
        "units": units,
        "domains": {f"d{i}": np.packbits(row).tobytes().hex() for i, row in enumerate(chosen)},
    }
    (folder / "record.json").write_text(json.dumps({"choices": record}), "utf-8")
    expected = [0] * (domains + 1)
    expected[0], expected[1], expected[-1] = int(kept.sum()) - 3, 2, 1
    assert chosen_by(folder) == expected


def line(
    name: str,
    seed: int,
    right: dict[str, list[int]],
    set: str = "precision-bf16",
    **more: Any,
) -> dict[str, Any]:
    bits = {k: np.array(v, bool) for k, v in right.items()}
    accuracy = {k: float(v.mean()) for k, v in bits.items()}
    return {
        "key": f"resnet18.{name}.seed{seed}.{'-'.join(right)}.{set}",
        "accuracy": accuracy,
        "mean": sum(accuracy.values()) / len(accuracy),
        "images": {k: len(v) for k, v in bits.items()},
        "right": {k: packed(v) for k, v in bits.items()},
        **more,
    }


def test_groups_with_both_rows_are_told(tmp_path: Path) -> None:
    together = {"a": [1, 1, 1, 0], "b": [1, 1, 0, 0]}
    apart = {"a": [1, 0, 1, 0], "b": [1, 0, 0, 0]}
    rows = [
        line("tuned-025", 0, together, chosen_by=[10, 20, 70]),
        line("separate-025", 0, apart, chosen_by=[]),
        line("tuned-025", 2, apart, chosen_by=[100, 0, 0]),  # a seed that the other row lacks
        line("tuned-025", 1, apart, set="e2-4-24.precision-bf16"),  # set in another way
        line("tuned-025", 0, {"a": [1], "c": [1]}, chosen_by=[1, 1, 1]),  # apart is still to come
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in rows), "utf-8")
    done = CliRunner().invoke(main, [str(path), "--like", "precision-bf16"])
    assert done.exit_code == 0, done.output
    (found,) = done.output.splitlines()[2:]
    assert found.startswith("| a, b | 62.50 | 37.50 | +25.00 [")
    assert found.endswith("] | 70% | 20% | 10% |")
    wrong = CliRunner().invoke(
        main, [str(path), "--like", "precision-bf16", "--shared", "tuned-050"]
    )
    assert wrong.exit_code == 2
    assert "no group of domains with both tuned-050 and separate-025" in wrong.output
    assert "it has 'e2-4-24.precision-bf16', 'precision-bf16'" in wrong.output


def test_each_backbone_has_a_table_of_its_own(tmp_path: Path) -> None:
    """Means were over both, and the difference that of the backbone that came last."""
    good, bad = {"a": [1, 1, 1, 0]}, {"a": [1, 0, 0, 0]}
    rows = [line("tuned-025", 0, good), line("separate-025", 0, bad)]
    others = [line("tuned-025", 0, bad), line("separate-025", 0, good)]
    rows += [{**x, "key": x["key"].replace("resnet18", "lite0")} for x in others]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(x) + "\n" for x in rows), "utf-8")
    done = CliRunner().invoke(main, [str(path), "--like", "precision-bf16"])
    assert done.exit_code == 0, done.output
    first, second = (part.splitlines() for part in done.output.split("lite0:\n"))
    assert first[0] == "resnet18:"
    assert "| a | 75.00 | 25.00 | +50.00 [" in first[-2]
    assert "| a | 25.00 | 75.00 | -50.00 [" in second[-1]

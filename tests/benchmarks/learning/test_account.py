"""What a row's bundle costs, and rows of every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prunion.benchmarks.learning.latency import bundle_account
from prunion.benchmarks.learning.plan.catalogue import ROWS
from prunion.benchmarks.learning.plan.row_config import make_config
from prunion.benchmarks.learning.table import accounts
from prunion.exporter.bundle import export_bundle
from prunion.exporter.verify import verify_bundle
from prunion.trainer.config import METHODS
from tests.support.networks.drawn import drawn_checkpoint

OPTIONS: dict[str, Any] = {
    "data": ".", "weights": ".", "epochs": "2,4,6", "settings": [], "teacher": "", "keep": (),
    "backbone": "resnet18", "domains": "gtsrb", "holdout": False, "share": 0.1, "seed": 0,
    "threads": 1, "round_to": 1, "profile": "device.json",
}  # fmt: skip


def test_every_method_has_a_row() -> None:
    trains = {name: make_config(row, OPTIONS).train for name, row in ROWS.items()}
    assert {train.method for train in trains.values()} == set(METHODS)
    for method, traits in METHODS.items():
        if not traits.prunes:
            assert trains[method].method == method
            assert ROWS[method].limit == 1
    for method in ("bap", "ba2"):
        assert (trains[f"{method}-slice"].granularity, ROWS[f"{method}-slice"].limit) == (
            "slice", 0.5,
        )  # fmt: skip


def test_the_papers_own_switches_have_rows_at_its_budgets_orders_and_losses() -> None:
    found = {name: row for name, row in ROWS.items() if name.startswith("paper-slice")}
    assert {row.limit for name, row in found.items() if "-epoch-" in name} == {1, 0.75, 0.5, 0.25}
    runs = {name: make_config(row, OPTIONS).train for name, row in found.items()}
    assert {(x.recipe, x.granularity, x.trunk) for x in runs.values()} == {
        ("paper", "slice", "frozen")
    }
    halves = {name: x for name, x in runs.items() if found[name].limit == 0.5}
    assert {(x.sharing, x.order) for x in halves.values()} == {
        ("union", "joint"), ("union", "epoch"), ("intersection", "joint"), ("jaccard", "joint"),
        ("none", "joint"),
    }  # fmt: skip
    assert {x.cut for x in halves.values() if x.sharing == "none"} == {"domains"}


@pytest.mark.parametrize("method", ["norms", "piggyback"])
def test_the_account_of_a_bundle(tmp_path: Path, method: str) -> None:
    checkpoint = drawn_checkpoint(tmp_path, method)
    manifest = export_bundle(checkpoint, tmp_path / "x.prunion")
    bundle, own = tmp_path / "x.prunion", method == "norms"
    report = verify_bundle(bundle, against=checkpoint)
    account = bundle_account(bundle, report, 1, own_norms=own, seconds=0.01)
    paper = manifest["paper"]
    assert account["params"] == paper["params"]
    if own:  # two BatchNorms are counted, and then one
        assert account["params_one_norm"] == pytest.approx(1)
    else:
        assert account["params_one_norm"] == paper["params"]
    assert account["flop"] == paper["flop"]
    assert account["bytes"]["graph"] == (bundle / "model.onnx").stat().st_size
    assert account["bytes"]["packs"] > 0
    assert 0 <= account["error"] <= 1e-4
    assert set(account["ms"]) == {"one", "one x 8", "mixed x 8"}
    assert all(0 < least <= median for median, least in account["ms"].values())
    line = {"key": f"resnet18.{method}.seed0", "mean": 0.5, "macs": 1.0, "account": account}
    head, _, row = accounts([line, {"key": "resnet18.lora.seed0"}]).splitlines()
    assert "| ms, mixed x 8 | error |" in head
    assert row.startswith(f"| `{method}` | 50.00 | {account['params']:.3f} |")
    assert row.count("|") == head.count("|")

"""Adapters beside the trunk can make a network larger than its backbone, which is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunion.exporter.bundle import export_bundle
from prunion.exporter.verify import verify_bundle
from prunion.runtime.bundle import open_bundle
from prunion.trainer.config import load_config
from prunion.trainer.run import train_run
from tests.support.tiny_run import tiny_run


def test_more_than_the_backbone_is_told_and_verified(tmp_path: Path) -> None:
    """The run, the manifest and the check all said 100 %."""
    keys = {"warmup": 1, "ramp": 0, "settle": 0, "method": '"ba2"', "adapter_rank": 16}
    run = train_run(load_config(tiny_run(tmp_path, **keys), ["budget.limit=0.9"]), tmp_path / "out")
    assert run.budget["value"] > 1 and not run.budget["met"]
    export_bundle(tmp_path / "out", tmp_path / "one.prunion")
    manifest = open_bundle(tmp_path / "one.prunion").manifest
    counts = manifest.params
    share = (counts["exported"] + counts["adapters"]) / counts["backbone"]
    assert manifest.budget.value == pytest.approx(share) == pytest.approx(run.budget["value"])
    report = verify_bundle(tmp_path / "one.prunion", against=tmp_path / "out")
    assert not report.problems

"""A bundle that is open is verified where it was opened, and never another in its place."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunion.exporter.verify import verify_bundle
from prunion.runtime.bundle import open_bundle
from tests.exporter.verify.test_report import rehash


def test_another_bundle_in_an_open_ones_place_is_not_taken_for_it(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(copy.parent)
    opened = open_bundle(copy.name)
    monkeypatch.chdir("/")
    assert verify_bundle(opened).problems == ()
    rehash(copy, lambda manifest: manifest.update(name="another"))
    report = verify_bundle(opened)
    assert report.bundle == str(copy) and report.graphs == ()
    assert "holds another bundle by now than the one that was opened" in report.problems[0]

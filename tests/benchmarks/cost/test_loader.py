"""Loaders beside one another read the same images, every way once."""

from __future__ import annotations

from pathlib import Path

from prunion.benchmarks.cost.loader import _ours, _read, _torchvision, loader_rates, write_photos


def test_every_way_reads_every_image(tmp_path: Path) -> None:
    assert 0 < write_photos(tmp_path, 32, 48) < 48 * 48 * 3
    assert _torchvision(tmp_path, 32, 8, 0)() == 32
    assert _read(_ours(tmp_path, 32, 8, 0, cache_bytes=0), 0) == 32
    rates = loader_rates(tmp_path, 32, 8, [0, 1], 1)
    assert len(rates) == 10 and all(rate.images_per_second > 0 for rate in rates)
    assert {rate.name for rate in rates if rate.workers == 1} == {
        "decode only",
        "torchvision's DataLoader",
        "prunion, nothing kept",
        "prunion, first epoch",
        "prunion, later epochs",
    }

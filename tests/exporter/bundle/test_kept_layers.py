"""Layers that a run file keeps whole stay so in every file."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunion.exporter.bundle import export_untrained
from prunion.exporter.slim import load_slim, save_slim, slim_network
from prunion.runtime.bundle import open_bundle
from prunion.runtime.errors import BudgetError, ConfigError
from prunion.trainer.config import load_config
from prunion.trainer.network import load_checkpoint
from prunion.trainer.run import train_run
from tests.support.tiny_run import tiny_run


def kept_run(folder: Path, keep: str) -> Path:
    """A tiny run file with `keep` as TOML."""
    run_file, cut = tiny_run(folder), 'cut = "layer1"'
    text = run_file.read_text("utf-8")
    run_file.write_text(text.replace(cut, f"{cut}\nkeep = {keep}"), "utf-8")
    return run_file


def test_layers_to_keep_are_whole_in_every_file(tmp_path: Path) -> None:
    """The blocks' inner layers pay for it; what is added to a kept layer is as wide as it."""
    run_file = kept_run(tmp_path, '["*.conv2"]')
    train_run(load_config(run_file), tmp_path / "out")
    loaded = load_checkpoint(tmp_path / "out")
    assert loaded.config.backbone.keep == ("*.conv2",)
    slim = slim_network(loaded.net)
    save_slim(tmp_path / "slim", slim, loaded, (loaded.net.switches > 0).any(0).numpy())
    for net in (slim, load_slim(tmp_path / "slim")):
        widths = {layer.weight: layer.shape[0] for layer in net.table.layers}
        assert widths["layer1.1.conv2.weight"] == widths["conv1.weight"] == 64
        assert widths["layer1.0.conv1.weight"] < 64 and widths["layer1.1.conv1.weight"] < 64


def test_kept_layers_are_whole_in_an_untrained_bundle_too(tmp_path: Path) -> None:
    """Which is what a device is profiled with."""
    export_untrained(load_config(kept_run(tmp_path, '["*.conv2"]')), tmp_path / "bundle")
    slots = open_bundle(tmp_path / "bundle").unit_table().slots
    assert slots["layer1.1.conv2.weight", 0].max() == -1
    assert slots["layer1.1.conv1.weight", 0].min() >= 0


def test_too_small_a_budget_names_what_is_kept(tmp_path: Path) -> None:
    run_file = kept_run(tmp_path, '["conv1", "layer1.0.conv?"]')
    with pytest.raises(BudgetError, match=r"\(round_to 8; keep = conv1, layer1\.0\.conv\?\) needs"):
        train_run(load_config(run_file), tmp_path / "out")


def test_what_keeps_every_layer_is_refused(tmp_path: Path) -> None:
    run_file = kept_run(tmp_path, '["conv1", "*.conv?"]')
    with pytest.raises(ConfigError, match=r"keep = conv1, \*\.conv\? keeps every channel"):
        train_run(load_config(run_file), tmp_path / "out")


def test_what_is_no_layer_is_named(tmp_path: Path) -> None:
    wrong = load_config(kept_run(tmp_path / "a", '["conv9"]'))
    with pytest.raises(ConfigError, match="'conv9' is no layer: give names or patterns such as"):
        train_run(wrong, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="keep is 'conv1': give a list of layers"):
        load_config(kept_run(tmp_path / "b", '"conv1"'))

"""Keys that say nothing of a run's domains or of its network are refused before its first step."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from prunion.runtime.errors import ConfigError
from prunion.trainer.config import load_config
from prunion.trainer.processes import ALONE
from prunion.trainer.run.start import begin
from tests.support.tiny_run import tiny_run


def bare(norm: bool) -> nn.Module:
    """Convolutions one behind the other."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8) if norm else nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    )


@pytest.mark.parametrize(
    ("changes", "norm", "said"),
    [
        (["method=parallel", "adapter_dropout=0.5"], True, "adapter_dropout is 0.5, of the second"),
        (["method=svd", "adapter_dropout=0.5"], False, "none of this network has an adapter: rem"),
        (["method=series", "adapter_dropout=0.5"], True, ""),
        (["method=packnet", "norms=own"], False, "norms is .own., and this network has no Batch"),
        (["method=packnet", "norms=own"], True, ""),
        (["method=packnet", "packnet_prune=0.5"], True, ""),
        (["method=packnet", "packnet_prune=0.5", "alone"], True, "there is one domain: remove it"),
    ],
)
def test_they_are_refused(tmp_path: Path, changes: list[str], norm: bool, said: str) -> None:
    run_file = tiny_run(tmp_path)
    if changes[-1] == "alone":
        changes.pop()
        run_file.write_text(run_file.read_text("utf-8").partition("[domains.cold]")[0], "utf-8")
    text = run_file.read_text("utf-8")
    run_file.write_text(text.replace('cut = "layer1"\n', ""), "utf-8")
    config = load_config(run_file, [f"train.{change}" for change in changes])
    if not said:
        begin(config, tmp_path / "out", "cpu", ALONE, model=bare(norm))
        return
    with pytest.raises(ConfigError, match=said):
        begin(config, tmp_path / "out", "cpu", ALONE, model=bare(norm))

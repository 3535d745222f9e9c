"""A run whose epochs leave nothing to cut or settle by is refused, not answered by chance."""

from __future__ import annotations

from pathlib import Path

import pytest

from prunion.runtime.errors import ConfigError
from prunion.trainer.config import load_config
from prunion.trainer.learning import Training
from prunion.trainer.run import train_run
from tests.support.tiny_run import tiny_run

FROZEN = {"trunk": '"frozen"'}


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"method": '"svd"'}, 'method "svd" learns what it settles with'),
        ({"method": '"taps"'}, 'method "taps" learns'),
        ({"method": '"packnet"'}, "learns which weights a domain keeps"),
        ({"recipe": '"paper"', **FROZEN}, "the paper's switches learn"),
        ({"granularity": '"slice"', **FROZEN}, "in which slices learn"),
        ({"granularity": '"slice"', "method": '"ba2"', **FROZEN}, "in which slices learn"),
    ],
)
def test_settling_alone_is_refused(
    tmp_path: Path, keys: dict[str, object], said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_file = tiny_run(tmp_path, warmup=0, ramp=0, settle=1, **keys)
    monkeypatch.setattr(Training, "run_epoch", lambda *_: pytest.fail("it trained"))
    with pytest.raises(ConfigError, match=said):
        train_run(load_config(run_file), tmp_path / "out")
    assert not (tmp_path / "out").exists()

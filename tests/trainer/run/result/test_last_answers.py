"""What is told of the answers of a finished network that learned nothing, or too fast."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

import prunion.trainer.run.train
from prunion.runtime.errors import PrunionError
from prunion.runtime.measure import Answers
from prunion.trainer.config import RunConfig, load_config
from prunion.trainer.data import open_domains
from prunion.trainer.run.record import tell_alike
from prunion.trainer.run.train import train_run
from tests.support.tiny_run import tiny_run

SHORT = {"warmup": 1, "ramp": 0, "settle": 0}
MODULE: ModuleType = prunion.trainer.run.train


def test_answers_that_are_not_finite_are_refused_as_a_loss_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loss has seen the last update, whose network may be finite and its answers not."""
    config = load_config(tiny_run(tmp_path, **SHORT))
    real: Callable[..., dict[int, Answers]] = MODULE.answer_domains

    def overflown(net: object, *args: object, **keys: object) -> dict[int, Answers]:
        net.heads[1].bias.data.fill_(np.inf)  # type: ignore[attr-defined]
        return real(net, *args, **keys)

    monkeypatch.setattr(MODULE, "answer_domains", overflown)
    with pytest.raises(PrunionError, match=r"domain cold: .* 24 of 24 test .* lower \[train\] lr"):
        train_run(config, tmp_path / "out")
    assert not (tmp_path / "out" / "checkpoint").exists()


def test_a_few_that_are_not_finite_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    config = load_config(tiny_run(tmp_path, **SHORT))
    real: Callable[..., dict[int, Answers]] = MODULE.answer_domains

    def one_lost(*args: object, **keys: object) -> dict[int, Answers]:
        found = real(*args, **keys)
        found[0].confidences[3] = 0
        return found

    monkeypatch.setattr(MODULE, "answer_domains", one_lost)
    train_run(config, tmp_path / "out")
    assert "1 of 16 test images are not finite, and count as wrong: lower" in caplog.text


@pytest.mark.parametrize(
    ("confidence", "changes", "said"),
    [
        (0.8, [], r"head: raise \[budget\] limit, or learn for longer$"),
        (0.8, ["budget.limit=1.0"], r"head: lower \[train\] lr.* again, or learn for longer$"),
        (0.8, ["train.method=parallel"], r"head: lower \[train\] lr.*adapter_lr"),
        (1.0, [], r"without bound: lower \[train\] lr.* start again$"),
    ],
)
def test_the_advice_is_one_that_the_run_can_take(
    tmp_path: Path,
    confidence: float,
    changes: list[str],
    said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    config: RunConfig = load_config(tiny_run(tmp_path), changes)
    (domain,) = open_domains(config.domains[:1], 0)
    labels, same = np.array([0, 1, 1]), np.zeros(3, np.int64)
    tell_alike({0: Answers(labels, same, np.full(3, confidence), same)}, [domain], config)
    (told,) = caplog.messages
    assert re.search(said, told)

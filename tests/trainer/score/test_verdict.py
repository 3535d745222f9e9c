"""A verdict says what pruning cost, how sure that is, and what stands in the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prunion.trainer.score.verdict import Learned, judge, read_verdict

RNG = np.random.default_rng(0)


def learned(
    right: dict[str, np.ndarray], trained: float, limit: float | None = 0.25, uncut: float = 0.25
) -> Learned:
    return Learned(
        right=right,
        accuracy={name: float(bits.mean()) for name, bits in right.items()},
        trained=dict.fromkeys(right, trained),
        images=dict.fromkeys(right, 2000),
        limit=limit,
        uncut=uncut,
    )


def bits(count: int, share: float) -> np.ndarray:
    """`share` of `count` answers right, the first ones."""
    return np.arange(count) < round(share * count)


def test_a_loss_that_images_can_tell_is_the_budgets_where_less_is_learned() -> None:
    whole = {"signs": bits(1000, 0.95), "cars": bits(1000, 0.90)}
    pruned = {"signs": bits(1000, 0.94), "cars": bits(1000, 0.80)}
    found = judge(learned(pruned, 0.90), learned(whole, 0.99))
    assert found.loss is not None
    assert found.loss.lost == pytest.approx(0.055)
    assert 0 < found.loss.low < found.loss.lost < found.loss.high
    assert found.limit == "budget"
    first, second = found.lines
    assert first.startswith("pruning lost 5.50 points (95 % interval ")
    assert "2,000 test images, one seed" in first
    assert "; most in cars: 10.00 [" in first
    assert "90.0% of the training images, 99.0% with every channel" in second


def test_a_small_difference_may_be_chance() -> None:
    whole, pruned = {"a": bits(200, 0.90)}, {"a": bits(200, 0.89)}
    found = judge(learned(pruned, 0.91), learned(whole, 0.91))
    assert found.loss is not None and not found.loss.sure
    assert "1.00 points, which may be chance" in found.lines[0]
    assert found.limit == "none"
    assert "smaller [budget] limit may do" in found.lines[1]


def test_the_images_are_the_limit_where_everything_seen_is_learned() -> None:
    whole, pruned = {"a": bits(500, 0.70)}, {"a": bits(500, 0.70)}
    found = judge(learned(pruned, 0.995), learned(whole, 0.995))
    assert found.limit == "data"
    assert "and channels are not" in found.lines[1]
    alone = judge(learned(pruned, 0.995))
    assert alone.loss is None and alone.limit == "data"
    assert "--baseline" in alone.lines[0]


def test_too_few_epochs_and_too_short_a_ramp_are_told() -> None:
    whole, pruned = {"a": bits(500, 0.60)}, {"a": bits(500, 0.60)}
    found = judge(learned(pruned, 0.6, uncut=0.4), learned(whole, 0.6))
    assert found.limit == "epochs"
    assert "learning left 40.0% where 25.0% was asked" in found.lines[-1]


def test_images_of_another_number_are_not_compared() -> None:
    found = judge(learned({"a": bits(100, 0.5)}, 0.5), learned({"a": bits(90, 0.5)}, 0.5))
    assert found.loss is None


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    """Pairs of answers drawn 2000 times; few images, and few that differ."""
    for count, ours, theirs in ((40, 0.05, 0.10), (300, 0.02, 0.04), (1000, 0.05, 0.05)):
        held = 0
        for _ in range(2000):
            draw = RNG.random(count)
            whole = np.where(draw < ours, False, True)
            pruned = np.where((draw >= ours) & (draw < ours + theirs), False, True)
            loss = judge(learned({"a": pruned}, 0.9), learned({"a": whole}, 0.9)).loss
            assert loss is not None
            held += loss.low <= theirs - ours <= loss.high
        assert 0.93 < held / 2000 < 0.99


def test_training_and_testing_are_compared_over_the_same_domains() -> None:
    """One after the other, the last epoch is the last domain's: the others' tests are not its."""
    right = {"first": bits(500, 0.50), "last": bits(500, 0.98)}
    found = judge(replace(learned(right, 0.99), trained={"last": 0.99}))
    assert found.limit == "unknown"
    assert judge(replace(learned(right, 0.99), trained={"first": 0.99})).limit == "data"


@pytest.mark.parametrize(
    ("asked", "kind", "backbone"),
    [
        (0.25, "params", None),
        ("25%", "macs", None),
        ("1.5M", "params", 6_000_000),
        (500, "params", 2000),
        ("3ms", "latency", 12.0),
        ("25%", "latency", 12.0),
    ],
)
def test_a_budget_may_be_written_in_every_way(
    asked: float | str, kind: str, backbone: float | None, tmp_path: Path
) -> None:
    """That the last cut took the rest was told of a number up to 1 alone."""
    answers = {"images": 8, "right_bits": "ff"}
    budget = {"kind": kind, "asked": asked, "backbone": backbone}
    data = {"a": {"images": {"train": 8}}}
    common = {"accuracy": {"a": 1.0}, "epochs": [1, 3], "uncut": 0.5, "data": data}
    record = {"domains": {"a": answers}, "result": {"budget": budget, **common}}
    (tmp_path / "record.json").write_text(json.dumps(record), "utf-8")
    found = read_verdict(tmp_path)
    assert found is not None
    assert "learning left 50.0% where 25.0% was asked" in found.lines[-1]

"""What a verdict says of the limit that binds, and what to try."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from prunion.trainer.score.pruning import Pruning
from prunion.trainer.score.verdict import judge
from tests.trainer.score.judged import CUT, NOTHING, SMALLER, bits, learned


@pytest.mark.parametrize("limit", [0.5, 1.0, 3.4, None])
@pytest.mark.parametrize("count", [3, 60, 500])
def test_a_run_that_prunes_nothing_is_told_nothing_of_pruning(
    limit: float | None, count: int
) -> None:
    for trained, tested in ((0.99, 0.99), (0.99, 0.6), (0.5, 0.5), (0.7, 0.3)):
        run = learned({"a": bits(count, tested)}, trained, limit, 1.0, NOTHING)
        other = learned({"a": bits(count, 1.0)}, 1.0, limit, 1.0, NOTHING)
        for found in (judge(run), judge(run, run), judge(run, other)):
            text = " ".join(found.lines)
            assert found.loss is None and not found.domains
            assert not any(word in text for word in ("prun", "budget", "channel", "cut", "ramp"))


@pytest.mark.parametrize(
    ("pruning", "told"),
    [
        (CUT, True),
        (replace(CUT, lead="the ramp"), True),
        (replace(CUT, lead=""), False),
        (replace(CUT, union=False), False),
        (replace(CUT, kept=0.7), False),
        (replace(CUT, kept=None), False),
        (NOTHING, False),
        (None, False),
    ],
)
def test_the_last_cut_is_told_of_where_there_was_one(pruning: Pruning | None, told: bool) -> None:
    run = learned({"a": bits(500, 0.9)}, 0.99, uncut=0.7, pruning=pruning)
    assert ("the last cut took the rest" in "".join(judge(run).lines)) == told


@pytest.mark.parametrize(
    ("pruning", "limit", "keys"),
    [
        (CUT, 0.25, "limit"),
        (None, 0.25, "limit"),
        (None, None, "limit"),
        (Pruning(True, kept=0.2, own=0.12, used=0.11), 1.0, "own"),
        (Pruning(True, kept=0.28, own=0.15, used=0.15), 0.95, "own"),
        (Pruning(True, kept=0.25, own=0.6, used=0.58), 0.25, "limit or own"),
        (Pruning(True, kept=0.25, own=0.6, used=0.3), 0.25, "limit"),
        (Pruning(True, kept=0.047), 0.5, ""),
    ],
)
def test_advice_names_the_limit_that_binds(
    pruning: Pruning | None, limit: float | None, keys: str
) -> None:
    whole, same, less = ({"a": bits(1000, share)} for share in (0.95, 0.945, 0.8))
    for right, trained, word in ((less, 0.80, "larger"), (same, 0.99, SMALLER.split()[0])):
        run = learned(right, trained, limit, pruning=pruning)
        found = judge(run, learned(whole, 0.99)).lines[1]
        assert (f"{word} [budget] {keys}" in found) == bool(keys)
        assert f"{word} [budget]" in found or not keys
        slack = pruning is not None and limit is not None and pruning.is_slack(limit)
        assert ("far below the [budget] limit of" in found) == slack


def test_few_images_and_networks_that_learned_nothing_do_not_lack_images() -> None:
    def limit_of(trained: float, tested: float, count: int) -> str:
        run = learned({"a": bits(count, tested)}, trained)
        return judge(run, run).limit

    assert limit_of(0.445, 0.377, 62) == "epochs"
    assert limit_of(0.99, 0.92, 62) == "none"  # seven points, of so few images
    assert limit_of(0.99, 0.92, 2000) == "data"
    assert limit_of(0.61, 0.0, 1) == "epochs"
    assert limit_of(0.5, 0.4, 5000) == "epochs"
    assert limit_of(0.85, 0.6, 2000) == "data"
    run = learned({"a": bits(5000, 0.4)}, 0.5)
    assert "more epochs, or another rate, and more images" in judge(run, run).lines[1]
    assert judge(run).limit == "unknown"  # the budget may be why
    run = learned({"a": bits(2000, 0.6)}, 0.85)
    assert "more training images, and more epochs" in judge(run, run).lines[1]


def changed(images: int, lost: int, won: int) -> tuple[np.ndarray, np.ndarray]:
    """What two networks answer right: all but what one of them alone does."""
    whole, pruned = np.ones(images, bool), np.ones(images, bool)
    pruned[:lost], whole[lost : lost + won] = False, False
    return whole, pruned


def test_channels_are_not_called_free_where_points_may_be_lost() -> None:
    pairs = {name: changed(400, 25, 16) for name in "ab"}
    whole, pruned = ({name: x[i] for name, x in pairs.items()} for i in (0, 1))
    found = judge(learned(pruned, 1.0), learned(whole, 1.0))
    assert found.loss is not None and found.loss.low <= 0 and found.loss.high > 0.03
    assert "channels are not" not in " ".join(found.lines)
    assert SMALLER not in " ".join(found.lines)


def test_a_loss_is_no_reason_to_say_that_the_network_learns_as_much() -> None:
    whole, pruned = changed(1000, 80, 20)
    found = judge(learned({"a": pruned}, 0.93), learned({"a": whole}, 0.93))
    assert found.limit == "budget"
    assert "93.0% with every channel, and answers fewer of the others" in found.lines[1]


def test_where_images_are_the_limit_a_sure_loss_is_not_passed_over() -> None:
    whole, pruned = {"a": bits(4000, 0.80)}, {"a": bits(4000, 0.75)}
    found = judge(learned(pruned, 0.995), learned(whole, 0.995))
    assert found.limit == "data"
    assert "or a larger [budget] limit for what pruning lost" in found.lines[1]

"""A verdict is given where the blocks allow one, and only there."""

from __future__ import annotations

import numpy as np
import pytest

from prunion.runtime.measure.comparison import Comparison, compare_blocks


def measured(times: float, noise: float, rounds: int = 30, seed: int = 0) -> Comparison:
    """Blocks of `times` against those of 1 ms; each round has a load of its own, up to tenfold."""
    random = np.random.default_rng(seed)
    load = np.exp(random.uniform(0, np.log(10), rounds))
    ours, theirs = (
        [base * x * np.exp(noise * random.standard_normal(5)) for x in load] for base in (times, 1)
    )
    return compare_blocks("a", "b", 1, ours, theirs)


@pytest.mark.parametrize(
    ("times", "noise", "verdict"),
    [
        (0.8, 0.05, "faster"),
        (1.25, 0.05, "slower"),
        (1.0, 0.01, "no difference that matters"),
        (1.02, 0.005, "no difference that matters"),
        (0.97, 0.05, "too noisy to say"),
        (1.0, 1.0, "too noisy to say"),
        (0.8, 1.0, "too noisy to say"),
    ],
)
def test_verdicts(times: float, noise: float, verdict: str) -> None:
    found = measured(times, noise)
    assert found.verdict == verdict
    assert found.low is not None
    assert found.high is not None
    assert found.low <= found.ratio <= found.high


def test_the_interval_holds_the_truth_as_often_as_it_says() -> None:
    held = [measured(0.9, 0.1, seed=seed) for seed in range(200)]
    share = np.mean([x.low <= 0.9 <= x.high for x in held if x.low and x.high])
    assert share > 0.89, "of 200; a bootstrap of 30 blocks is a little too narrow"


def test_equal_things_are_hardly_ever_told_apart() -> None:
    verdicts = [measured(1.0, 0.1, seed=seed).verdict for seed in range(200)]
    assert sum(x in ("faster", "slower") for x in verdicts) <= 4


def test_few_blocks_give_no_interval_and_one_wild_round_no_verdict() -> None:
    few = measured(0.1, 0.01, rounds=4)
    assert (few.low, few.high, few.verdict) == (None, None, "too noisy to say")
    ours, theirs = ([np.full(3, x) for x in row] for row in ([1.0] * 20, [1.0] * 19 + [50.0]))
    assert compare_blocks("a", "b", 1, ours, theirs).verdict == "no difference that matters"


@pytest.mark.parametrize("rounds", [8, 12, 24])
def test_the_interval_of_few_rounds_is_no_narrower_than_it_says(rounds: int) -> None:
    """Of eight rounds, some of them disturbed, it held the truth 91 times of 100."""
    held, random = [], np.random.default_rng(rounds)
    for _ in range(400):
        wild = np.where(random.random(rounds) < 0.15, 1.0, 0.05)
        logs = wild * random.standard_normal(rounds)
        x = compare_blocks("a", "b", 1, [np.exp([v]) for v in logs], [np.ones(1)] * rounds)
        assert x.low is not None
        assert x.high is not None
        held.append(x.low <= 1 <= x.high)
    assert np.mean(held) >= 0.94


def test_what_falls_on_a_whole_group_of_rounds_is_in_the_interval() -> None:
    """Where memory lies is drawn once for a process: its rounds are no eighteen witnesses."""
    random, alarms = np.random.default_rng(0), {1: 0, 3: 0}
    for _ in range(200):
        processes = np.repeat(0.1 * random.standard_normal(3), 6)
        logs = processes + 0.02 * random.standard_normal(18)
        blocks = [np.exp([v]) for v in logs]
        for groups in alarms:
            x = compare_blocks("a", "b", 1, blocks, [np.ones(1)] * 18, groups=groups)
            alarms[groups] += x.verdict in ("faster", "slower")
    assert alarms[1] > 40, "of 200 that are no different, where each round is a witness"
    assert alarms[3] <= 20, "three processes that happen to be alike cannot be told"


def interrupted(ms: float, slices_ms: float, random: np.random.Generator) -> np.ndarray:
    """A block of 42 ms of calls; other load takes 25 ms whenever they have run for a slice."""
    left, calls = random.uniform(0, slices_ms), []
    while sum(calls) < 42:
        took = ms * float(np.exp(0.02 * abs(random.standard_normal())))
        cut = -int((left - took) // slices_ms)  # slices that end while it runs
        left += max(cut, 0) * slices_ms - took
        calls.append(took + max(cut, 0) * 25 * float(np.exp(0.1 * random.standard_normal())))
    return np.array(calls)


@pytest.mark.parametrize("slices_ms", [2.0, 4.0])
@pytest.mark.parametrize("truth", [0.485, 1.0])
def test_load_that_interrupts_some_calls_makes_no_ratio(truth: float, slices_ms: float) -> None:
    """One's median is a bare call, the other's one that was interrupted, in every round alike."""
    held, verdicts = [], set()
    for seed in range(20):
        random = np.random.default_rng(seed)
        blocks = [
            [interrupted(1.36 * x, slices_ms, random) for x in (truth, 1.0)] for _ in range(24)
        ]
        x = compare_blocks("a", "b", 1, [one for one, _ in blocks], [other for _, other in blocks])
        assert x.low is not None
        assert x.high is not None
        held.append(x.low <= truth <= x.high)
        verdicts.add(x.verdict)
        if truth < 1:
            assert truth / 1.5 < x.ratio < truth * 1.5
            assert "by the medians of blocks" in x.note
            assert "interrupts some calls" in x.note
    assert np.mean(held) >= 0.9
    assert truth < 1 or not verdicts & {"faster", "slower"}

"""Intervals that nothing is drawn for: draws come to the same, and so does the other way round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from prunion.benchmarks.learning.certainty.interval import image_interval, seed_interval, t_cdf
from prunion.benchmarks.learning.paired import compare, label_of, read_rows

EIGHT = Path(__file__).parents[3] / "benchmarks/learning/results/eight.jsonl"
DRAWS = 2_000_000


@pytest.mark.parametrize(
    ("df", "end"), [(1, 12.706205), (2, 4.302653), (3, 3.182446), (4, 2.776445), (9, 2.262157)]
)
def test_students_t_is_that_of_the_tables(df: int, end: float) -> None:
    assert t_cdf(np.array([-end, 0, end]), df) == pytest.approx([0.025, 0.5, 0.975], abs=1e-7)
    means = np.arange(df + 1.0)
    error = means.std(ddof=1) / (df + 1) ** 0.5
    assert seed_interval(means) == pytest.approx((-end * error, end * error), rel=1e-6)


@pytest.mark.parametrize("seeds", [1, pytest.param(2, marks=pytest.mark.thorough)])
def test_as_many_draws_come_to_the_same(seeds: int) -> None:
    """Ends of two million draws of the same two parts, within 1 %."""
    draw, shares = np.random.default_rng(0), [(300, 0.2, 0.1), (40, 0.3, 0.4), (900, 0.05, 0.04)]
    domains = []
    for count, better, worse in shares:
        image = draw.choice([1.0, -1.0, 0.0], count, p=[better, worse, 1 - better - worse])
        flips = draw.random((seeds, count)) < 0.1
        domains.append(np.where(flips, draw.choice([1.0, 0.0], (seeds, count)), image))
    total, means = np.zeros(DRAWS), np.mean([each.mean(1) for each in domains], axis=0)
    for each in domains:
        count, image = each.shape[1], each.mean(0)
        agreed = 1.0
        if seeds > 1:
            chance = each - image - each.mean(1, keepdims=True) + each.mean()
            noise = (chance**2).sum() / ((seeds - 1) * (count - 1))
            agreed = max(0.0, 1 - noise / seeds / image.var(ddof=1)) ** 0.5
        values, times = np.unique(image, return_counts=True)
        drawn = draw.multinomial(count, times / count, DRAWS) @ values / count
        total += agreed * (drawn - image.mean()) / len(domains)
    if seeds > 1:
        total += means.std(ddof=1) / seeds**0.5 * draw.standard_t(seeds - 1, DRAWS)
    low, high = np.quantile(-total, [0.025, 0.975])
    assert image_interval(domains) == pytest.approx((low, high), rel=0.01)


def test_two_seeds_of_the_table_tell_the_same_both_ways() -> None:
    """Drawn 20,000 times they had -6.10 to 0.04 points one way, and 0.20 to 6.02 the other."""
    names = ("tuned-025.all.precision-bf16", "tuned-all.all.precision-bf16")
    lines = read_rows(EIGHT)
    ours, theirs = ([line for line in lines if label_of(line) == name] for name in names)
    there, back = compare(ours, theirs), compare(theirs, ours)
    assert there is not None and back is not None and there.seeds == 2
    assert (back.mean, back.low, back.high) == (-there.mean, -there.high, -there.low)
    assert (there.verdict, back.verdict) == ("worse", "better")
    assert 100 * there.low == pytest.approx(-5.95, rel=0.01)
    assert 100 * there.high == pytest.approx(-0.11, abs=0.03)

"""Paired rows: known answers, and intervals that hold the truth as often as they say."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner

from prunion.benchmarks.learning.certainty import interval
from prunion.benchmarks.learning.paired import compare, main, packed, unpacked
from prunion.benchmarks.learning.table import table


def lines(name: str, right: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """One line a seed, from answers `[S, N]` of each domain."""
    seeds = len(next(iter(right.values())))
    accuracy = [{d: float(bits[seed].mean()) for d, bits in right.items()} for seed in range(seeds)]
    return [
        {
            "key": f"resnet18.{name}.seed{seed}",
            "accuracy": accuracy[seed],
            "mean": sum(accuracy[seed].values()) / len(right),
            "images": {d: bits.shape[1] for d, bits in right.items()},
            "right": {d: packed(bits[seed]) for d, bits in right.items()},
            "params": 0.25,
            "macs": 0.5,
            "returned": 0,
        }
        for seed in range(seeds)
    ]


def answers(
    draw: np.random.Generator, seeds: int, images: int, gain: float, spread: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Answers `[S, N]` of two rows over images of differing difficulty, one `gain` better.

    `spread`: how far the seeds differ in that.
    """
    easy = draw.uniform(0.6, 0.9, images)
    shift = gain + draw.normal(0, spread, (seeds, 1))
    shape = (seeds, images)
    return draw.random(shape) < easy + shift, draw.random(shape) < easy


def test_answers_are_packed_in_order() -> None:
    right = np.arange(21) % 3 == 0
    bits = np.unpackbits(np.frombuffer(base64.b64decode(packed(right)), np.uint8), count=21)
    assert (bits == right).all()
    assert (unpacked(packed(right), 21) == right).all()


@pytest.mark.parametrize("key", ["resnet18.one.seed0", "lite0.one.seed1"])
def test_a_row_has_one_backbone_and_each_seed_once(key: str) -> None:
    right = {"a": np.ones((1, 4), bool)}
    ours, theirs = lines("one", right), lines("two", right)
    with pytest.raises(click.ClickException, match=rf"resnet18\.one\.seed0 and {key} are not one"):
        compare([*ours, {**ours[0], "key": key}], theirs)


def test_every_domain_weighs_the_same() -> None:
    """100 images all gained, 1000 none: half a mean gained, without doubt over seeds or images."""
    ours = lines("a", {"few": np.ones((3, 100), bool), "many": np.ones((3, 1000), bool)})
    theirs = lines("b", {"few": np.zeros((3, 100), bool), "many": np.ones((3, 1000), bool)})
    difference = compare(ours, theirs)
    assert difference is not None
    assert (difference.mean, difference.low, difference.high) == (0.5, 0.5, 0.5)
    assert (difference.seeds, difference.images, difference.verdict) == (3, 1100, "better")
    back = compare(theirs, ours)
    assert back is not None and back.verdict == "worse"


def test_seeds_are_paired_and_one_cannot_tell() -> None:
    ours = lines("a", {"x": np.ones((3, 50), bool)})
    theirs = lines("b", {"x": np.zeros((3, 50), bool)})
    one = compare(ours[:2], theirs[1:])
    assert one is not None and (one.seeds, one.mean, one.verdict) == (1, 1.0, "cannot tell")
    assert compare(ours[:1], theirs[1:]) is None
    assert compare([{"key": "resnet18.a.seed0"}], theirs) is None  # an older line, without answers
    with pytest.raises(
        click.ClickException, match=r"other images than resnet18\.a\.seed0: compare"
    ):
        compare(ours, lines("b", {"x": np.zeros((3, 51), bool)}))


def test_as_many_other_images_are_not_the_same() -> None:
    """Rows of before do not tell what their images hold, and are compared by how many there are."""
    older, theirs = (lines(name, {"x": np.ones((2, 50), bool)}) for name in "ab")
    ours = [{**line, "digests": {"x": "11"}} for line in older]
    assert compare(ours, theirs) is not None and compare(older, theirs) is not None
    assert compare(ours, [{**line, "digests": {"x": "11"}} for line in theirs]) is not None
    with pytest.raises(click.ClickException, match="other images"):
        compare(ours, [theirs[0], {**theirs[1], "digests": {"x": "22"}}])


def held_out(rows: list[dict[str, Any]], digests: bool) -> list[dict[str, Any]]:
    """The same rows as of `--holdout`, each seed with images of its own."""
    own = [{**row, "key": f"{row['key']}.holdout25"} for row in rows]
    if not digests:
        return own
    return [{**row, "digests": {"x": str(seed)}} for seed, row in enumerate(own)]


@pytest.mark.parametrize("digests", [False, True])
def test_seeds_that_hold_out_other_images_are_compared_each_with_itself(digests: bool) -> None:
    """Then image 7 of one seed is not image 7 of the next, and the seeds' spread has both."""
    draw = np.random.default_rng(0)
    good, plain = answers(draw, 3, 200, 0.1, 0.05)
    ours, theirs = (held_out(lines(n, {"x": x}), digests) for n, x in (("a", good), ("b", plain)))
    found = compare(ours, theirs)
    assert found is not None and found.seeds == 3
    gains = good.mean(1) - plain.mean(1)
    half = 4.303 * gains.std(ddof=1) / 3**0.5  # Student's t for three
    assert found.high - found.low == pytest.approx(2 * half, rel=0.05)
    assert found.mean == pytest.approx(gains.mean())
    one = compare(ours[:1], theirs[:1])
    assert one is not None and one.seeds == 1 and one.low < one.mean < one.high
    if digests:
        with pytest.raises(click.ClickException, match=r"other images than resnet18\.a\.seed0"):
            compare(ours, [{**row, "digests": {"x": "other"}} for row in theirs])


def test_two_seeds_tell_what_students_t_says_of_two() -> None:
    """0.96 and 0.80 points: 12.7 standard errors to each side, which is more than their mean."""
    better, worse = np.zeros((2, 10_000), bool), np.zeros((2, 10_000), bool)
    better[0, :96] = better[1, :80] = True
    found = compare(lines("a", {"x": better}), lines("b", {"x": worse}))
    assert found is not None and found.low < 0 < found.mean and found.verdict == "cannot tell"
    assert found.high - found.mean >= 0.98 * 12.706 * 0.0008


@pytest.mark.parametrize(
    ("seeds", "spread"),
    [
        (1, 0.0),
        (2, 0.02),
        *(pytest.param(*x, marks=pytest.mark.thorough) for x in [(3, 0.0), (3, 0.02), (5, 0.01)]),
    ],
)
def test_the_interval_holds_the_truth(
    seeds: int, spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In about 95 of 100 experiments; 200 of them tell that to two points."""
    monkeypatch.setattr(interval, "POINTS", 512)
    draw, held = np.random.default_rng(0), 0
    for _ in range(200):
        pairs = {f"d{n}": answers(draw, seeds, n, 0.01, spread) for n in (200, 500)}
        difference = compare(
            lines("a", {d: pair[0] for d, pair in pairs.items()}),
            lines("b", {d: pair[1] for d, pair in pairs.items()}),
        )
        assert difference is not None
        held += difference.low <= 0.01 <= difference.high
    assert 0.91 <= held / 200 <= 0.99


def test_a_table_of_comparisons(tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    good, plain = answers(draw, 5, 2000, 0.1)
    rows = lines("tuned-all", {"x": good}) + lines("tuned-025", {"x": plain})
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows), "utf-8")
    output = CliRunner().invoke(main, [str(path), "tuned-all"], catch_exceptions=False).output
    assert "| row | against | seeds | images | points | 95 % interval | verdict |" in output
    (line,) = [x for x in output.splitlines() if "`tuned-025`" in x]
    assert line.startswith("| `tuned-all` | `tuned-025` | 5 | 2,000 | +")
    assert line.endswith("| better |")
    unknown = CliRunner().invoke(main, [str(path), "tuned-all", "ba2"])
    assert unknown.exit_code == 2 and "no row ba2 in" in unknown.output
    lost = table(rows)
    difference = compare(rows[:5], rows[5:])
    assert difference is not None
    assert f"| {100 * difference.mean:.2f} {difference.interval} |" in lost

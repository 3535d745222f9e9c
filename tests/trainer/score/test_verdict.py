"""A verdict says what pruning cost, how sure that is, and what stands in the way."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prunion.trainer.score.verdict import judge, read_verdict
from tests.trainer.score.judged import MADE_BY, SETS, SMALLER, bits, learned
from tests.trainer.score.written_run import written_run

RNG = np.random.default_rng(0)


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
    assert SMALLER not in found.lines[1]  # up to five points may have been lost


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


def changed(**sets: object) -> dict[str, object]:
    return {**MADE_BY, "domains": {"a": {**SETS, **sets}}}


@pytest.mark.parametrize(
    "other",
    [
        None,  # of an earlier prunion: unknown is not the same
        {"domains": {"a": {"classes": ["x", "y"]}}},
        changed(digests={"train": "images:1", "test": "images:3"}),
        changed(digests={"train": "images:3", "test": "images:2"}),
        changed(digests={"train": "1", "test": "2"}),
        changed(classes=["x", "z"]),
        {**MADE_BY, "config": {**MADE_BY["config"], "seed": 1}},  # type: ignore[dict-item]
    ],
)
def test_a_baseline_of_other_images_or_another_seed_is_not_compared(other: object) -> None:
    """Only how many answers there were was looked at."""
    whole, pruned = learned({"a": bits(100, 0.5)}, 0.5), learned({"a": bits(100, 0.5)}, 0.5)
    assert judge(pruned, whole).loss is not None
    assert judge(pruned, replace(whole, made_by=other)).loss is None  # type: ignore[arg-type]
    assert judge(replace(pruned, made_by=other), whole).loss is None  # type: ignore[arg-type]
    config = {**MADE_BY["config"], "budget": {"limit": 1.0}}  # type: ignore[dict-item]
    larger = replace(whole, made_by={**MADE_BY, "config": config})
    assert judge(pruned, larger).loss is not None


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
    found = read_verdict(written_run(tmp_path, {"limit": asked, "kind": kind}, backbone))
    assert found is not None
    assert "learning left 50.0% where 25.0% was asked" in found.lines[-1]


def chance(count: int, share: float, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(count) < share


def test_a_domain_that_surely_lost_is_told_whatever_the_mean_may_be() -> None:
    """A few test images of one domain decide how wide the mean's interval is."""
    whole = {"signs": bits(1674, 0.20), "few": bits(30, 0.4)}
    pruned = {"signs": bits(1674, 0.11), "few": bits(30, 0.4)[::-1]}
    found = judge(learned(pruned, 0.3), learned(whole, 0.3))
    assert found.loss is not None and not found.loss.sure and found.domains["signs"].low > 0
    assert "4.51 points in the mean, which may be chance (" in found.lines[0]
    assert "; what signs lost is not: 9.02 [" in found.lines[0]
    assert found.limit == "budget" and SMALLER not in "".join(found.lines)
    assert judge(learned(pruned, 0.99), learned(whole, 0.99)).limit == "data"
    both = {"signs": ~pruned["signs"], "cars": bits(1000, 0.8)}
    gained = {"signs": ~whole["signs"], "cars": bits(1000, 0.9)}  # as many points as signs lost
    found = judge(learned(gained, 0.9), learned(both, 0.9))
    assert found.loss is not None and not found.loss.sure
    assert found.limit == "budget" and SMALLER not in "".join(found.lines)
    both = {**whole, "cars": bits(800, 0.9)}
    lost = {**pruned, "cars": bits(800, 0.8)}
    found = judge(learned(lost, 0.6), learned(both, 0.6))
    assert "; what 2 domains lost is not, most in cars: 10.00 [" in found.lines[0]


def test_a_domain_that_lost_is_asked_how_well_it_learns() -> None:
    """The others' training images say nothing of it."""
    whole = {"signs": bits(1674, 0.90), **{f"few{i}": bits(30, 0.9) for i in range(4)}}
    pruned = {**whole, "signs": bits(1674, 0.80)}
    good, less = learned(whole, 0.97), learned(pruned, 0.97)
    less = replace(less, trained={**less.trained, "signs": 0.90, "few0": 1.0, "few1": 1.0})
    less = replace(less, images={**less.images, "few0": 60, "few1": 60})
    assert judge(less, good).limit == "budget"


def test_what_is_learned_less_is_told_of_the_domains_that_lost() -> None:
    """In the mean more may be learned: "90.0% of the training images, 83.5% with every channel"."""
    whole = {"signs": bits(1000, 0.95), "cars": bits(1000, 0.60)}
    pruned = {"signs": bits(1000, 0.85), "cars": bits(1000, 0.62)}
    run = replace(learned(pruned, 0.9), trained={"signs": 0.85, "cars": 0.95})
    rival = replace(learned(whole, 0.9), trained={"signs": 0.97, "cars": 0.70})
    found = judge(run, rival)
    assert found.limit == "budget"
    assert "85.0% of the training images of signs, 97.0% with every channel" in found.lines[1]


def test_what_another_baseline_learned_says_nothing() -> None:
    """It made images the limit of a run whose own figures do not tell."""
    alone, rival = learned({"a": bits(500, 0.5)}, 0.7), learned({"a": bits(500, 0.52)}, 0.99)
    config = {**MADE_BY["config"], "seed": 1}  # type: ignore[dict-item]
    other = replace(rival, made_by={**(rival.made_by or {}), "config": config})
    assert judge(alone, rival).loss is not None
    assert judge(alone, other).limit == judge(alone).limit == "unknown"


@pytest.mark.parametrize("few", [3, 5])
def test_a_handful_of_images_is_sure_of_nothing(few: int) -> None:
    """The exact test has p = 0.25 of three images that are all lost, 0.06 of five."""
    found = judge(learned({"a": bits(few, 0)}, 0.95), learned({"a": bits(few, 1)}, 0.95))
    assert found.loss is not None and found.loss.low == 0
    assert not found.loss.sure and not found.domains["a"].sure
    assert "100.00 points, which may be chance (95 % interval 0.00 … 100.00" in found.lines[0]
    beside = {"b": bits(1000, 0.9)}  # three images weigh as much as these thousand
    found = judge(
        learned({"a": bits(few, 0), **beside}, 0.95), learned({"a": bits(few, 1), **beside}, 0.95)
    )
    assert found.loss is not None and not found.loss.sure
    six = judge(learned({"a": bits(6, 0)}, 0.95), learned({"a": bits(6, 1)}, 0.95))
    assert six.loss is not None and six.loss.sure


def test_what_may_have_cost_much_is_not_said_to_cost_little() -> None:
    run, whole = learned({"a": bits(30, 0.8)}, 0.95), learned({"a": bits(30, 0.95)}, 0.95)
    found = judge(run, whole)
    assert found.loss is not None and not found.loss.sure and found.loss.high > 0.1
    assert "or that fewer would do: more test images would tell" in found.lines[1]


def test_a_gain_has_the_interval_of_a_gain() -> None:
    whole, pruned = {"a": chance(60, 0.6, 0)}, {"a": chance(60, 0.75, 1)}
    found = judge(learned(pruned, 0.9), learned(whole, 0.9)).lines[0]
    back = judge(learned(whole, 0.9), learned(pruned, 0.9)).lines[0]
    assert found.startswith("pruning gained ") and "which may be chance" in found
    assert found == back.replace("lost", "gained")
    sure = judge(learned({"a": bits(500, 0.9)}, 0.9), learned({"a": bits(500, 0.8)}, 0.9))
    assert sure.lines[0].startswith("pruning gained 10.00 points (95 % interval 7.")
    assert "-" not in sure.lines[0]


def test_a_baseline_of_other_images_is_told_of() -> None:
    whole = {"a": bits(1000, 0.9), "b": bits(90, 0.9)}
    pruned = {"a": bits(1000, 0.7), "b": bits(91, 0.9)}
    found = judge(learned(pruned, 0.8), learned(whole, 0.8))
    assert "beside this run in b (other test images" in found.lines[0]
    assert "; a surely lost 20.00 [" in found.lines[0] and found.limit == "budget"


def test_seldom_is_chance_taken_for_a_loss() -> None:
    """Of runs that lost nothing, of domains of any size, few are told that something was lost."""
    sizes, wrong = (8, 30, 62, 300, 1000), 0
    for _ in range(150):
        whole, pruned = ({str(n): RNG.random(n) < 0.7 for n in sizes} for _ in range(2))
        wrong += judge(learned(pruned, 0.9), learned(whole, 0.9)).limit == "budget"
    assert wrong / 150 < 0.07


@pytest.mark.parametrize("made_by", [3, [], {}, {"domains": {"a": 3}}, {"domains": {"a": {}}}])
def test_a_damaged_note_of_images_is_unknown(made_by: object, tmp_path: Path) -> None:
    data = {"a": {"images": {"train": 8, "test": 8}}}
    budget = {"kind": "params", "asked": 0.5, "backbone": None}
    common = {"accuracy": {"a": 1.0}, "epochs": [1, 3], "uncut": 0.5, "data": data}
    answers = {"images": 8, "right_bits": "ff", "classes": [{"name": "x"}, {"name": "y"}]}
    record = {"domains": {"a": answers}, "result": {"budget": budget, **common}}
    (tmp_path / "record.json").write_text(json.dumps({**record, "made_by": made_by}), "utf-8")
    found = read_verdict(tmp_path, tmp_path)
    assert found is not None and found.loss is None


@pytest.mark.parametrize(
    ("train", "own", "known"),
    [
        ({}, {}, True),
        ({"augment": {"randaugment": 9}}, {}, True),
        ({"augment": {"mixup": 1.0}}, {}, False),
        ({"augment": {"mixup": 1.0}}, {"augment": {"erasing": 0.25}}, True),
        ({}, {"augment": {"cutmix": 1.0}}, False),
    ],
)
def test_of_mixed_images_nobody_knows_what_was_learned(
    train: dict[str, object],
    own: dict[str, object],
    known: bool,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A network that knows them all would answer few of them as the larger part's label says."""
    folder = written_run(tmp_path, {"limit": 0.25}, train=train, result={"steps": [1, 3]})
    record = json.loads((folder / "record.json").read_text("utf-8"))
    record["made_by"]["config"]["domains"]["a"] |= own
    (folder / "record.json").write_text(json.dumps(record), "utf-8")
    line = json.dumps({"step": 3, "train_accuracy/a": 0.7})
    (folder / "metrics.jsonl").write_text(line + "\n", "utf-8")
    monkeypatch.setattr("prunion.trainer.score.verdict.judge", lambda pruned, baseline: pruned)
    assert read_verdict(folder).trained == ({"a": 0.7} if known else {})  # type: ignore[union-attr]


def test_of_domains_in_turns_it_says_whose_images_were_learned() -> None:
    pruned = learned({"first": bits(500, 0.7), "last": bits(500, 0.7)}, 0.99)
    found = judge(replace(pruned, trained={"last": 0.99}))
    assert "99.0% of the training images of last" in " ".join(found.lines)


def test_statistics_that_fit_nothing_are_no_lack_of_images() -> None:
    """In training steps each batch has its own: "try more training images" was the advice."""
    few = replace(learned({"a": bits(200, 0.4)}, 1.0), images={"a": 60})
    assert judge(few).limit == "data"
    found = judge(replace(few, seen={"a": (60, 0.4)}))
    assert found.limit == "norms"
    assert "answer 100.0% of the training images by those of each batch" in found.lines[1]
    assert "as it is exported 40.0%. Try more epochs" in found.lines[1]
    assert judge(replace(few, seen={"a": (60, 0.95)})).limit == "data"

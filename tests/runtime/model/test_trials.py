"""Mixed or split, tried on real batches: how often, what follows, and that answers are the same."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from prunion.runtime.model import Plan, Trials, load
from prunion.runtime.model.trials import AGAIN, OFTEN, ROUNDS, SOONEST

FAST, SLOW = {1: 1.0, 2: 1.0, 8: 1.0}, {1: 9.0, 2: 9.0, 8: 9.0}


class Machine:
    """Runs batches in the times it is told, and counts how often each way."""

    def __init__(self, split: float, mixed: float) -> None:
        self.now, self.ms = 0.0, {True: split, False: mixed}
        self.trials = Trials(lambda: self.now)

    def run(self, count: int, planned: bool, ready: bool = True, each: int = 2) -> list[bool]:
        ways = []
        for _ in range(count):
            ways.append(self.trials.splits([each, each], planned, lambda: ready))
            self.now += self.ms[ways[-1]] * each / 1000
            self.trials.record([each, each], ways[-1])
        return ways


@pytest.mark.parametrize("planned", [True, False])
def test_the_faster_way_wins_whatever_the_plan_says(planned: bool) -> None:
    machine = Machine(split=1.0, mixed=1.5)
    machine.run(OFTEN + 2 * ROUNDS, planned)
    assert set(machine.run(500, planned)) == {True}
    assert list(machine.trials.in_force()) == [((4, 2), True)]
    machine = Machine(split=1.5, mixed=1.0)
    machine.run(OFTEN + 2 * ROUNDS, planned)
    assert set(machine.run(500, planned)) == {False}
    assert machine.trials.done == 1


def test_a_trial_costs_a_few_batches_in_ten_minutes() -> None:
    machine = Machine(split=2.0, mixed=1.0)
    ways = machine.run(1000, planned=False)
    assert ways.count(True) == ROUNDS and not any(ways[: OFTEN - 1])
    machine.now += AGAIN + 1
    assert machine.run(1000, planned=False).count(True) == ROUNDS
    hopeless = Machine(split=50.0, mixed=1.0)
    assert hopeless.run(1000, planned=False).count(True) == 1


def test_what_gets_slow_is_tried_again_before_that() -> None:
    machine = Machine(split=1.0, mixed=1.5)
    machine.run(200, planned=True)
    machine.ms[True] = 3.0
    assert set(machine.run(100, planned=True)) == {True}, "not twice in half a minute"
    machine.now += SOONEST + 1
    machine.run(OFTEN + 2 * ROUNDS, planned=True)
    assert set(machine.run(100, planned=True)) == {False}


def test_another_mix_is_tried_for_itself_and_a_rare_one_is_not() -> None:
    machine = Machine(split=1.0, mixed=1.5)
    machine.run(200, planned=False)
    assert not any(machine.run(OFTEN - 1, planned=False, each=8)), "rare so far"
    machine.run(2 * ROUNDS + 1, planned=False, each=8)
    assert list(machine.trials.in_force()) == [((4, 2), True), ((16, 2), True)]


def test_small_differences_change_nothing() -> None:
    machine = Machine(split=1.0, mixed=1.01)
    assert machine.run(500, planned=False)[-100:] == [False] * 100


def test_no_session_is_made_for_a_trial() -> None:
    machine = Machine(split=1.0, mixed=1.5)
    assert not any(machine.run(500, planned=False, ready=False))
    machine.now += SOONEST + 1
    assert any(machine.run(500, planned=False))


@pytest.mark.parametrize("plan", [Plan(FAST, SLOW), Plan(SLOW, FAST)])
def test_answers_stay_the_same(
    bundle_path: Path, toy: ModuleType, batch: np.ndarray, plan: Plan
) -> None:
    rows = [0, 1, 2, 0, 1, 2]
    expected = toy.reference(toy.make_tables(), batch, np.array(rows))
    with load(bundle_path, "cpu", threads=1) as model:
        for domain in model.domains:
            model.logits(batch[:1], domain)  # makes its session, which a trial needs
        model._plan, model.trials = plan, Trials()
        for _ in range(OFTEN + 2 * ROUNDS + 5):
            np.testing.assert_allclose(model.logits(batch, rows), expected, rtol=1e-4, atol=1e-5)
        assert model.trials.done == 1 and len(model.trials.runs) == 2

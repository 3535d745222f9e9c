"""Orders in which sets are passed over: by whole passes, in turns."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from prunion.trainer.config import TrainConfig
from prunion.trainer.data import Domain, JointBatches
from tests.trainer.data.three import flat, run, three_domains


@pytest.fixture
def domains() -> list[Domain]:
    return three_domains()


def test_a_round_robin_passes_over_each_set_once_and_draws_the_order_of_sets(
    domains: list[Domain],
) -> None:
    """40, 23 and 7 images in eights; a last batch of three joins the one before."""
    batches = JointBatches(domains, run("round-robin"))
    orders, sizes = set(), {}
    for epoch in range(8):
        steps = list(batches.epoch(epoch))
        assert len(steps) == batches.steps_per_epoch == 5 + 3 + 1
        turns = [step[0].domain for step in steps]
        orders.add(tuple(dict.fromkeys(turns)))
        for domain in range(3):
            sizes[domain] = [len(s[0].labels) for s in steps if s[0].domain == domain]
            assert turns.count(domain) == len(sizes[domain])
    assert sizes == {0: [8] * 5, 1: [8, 8, 7], 2: [7]}
    assert len(orders) > 2
    assert flat(batches.epoch(3)) == flat(JointBatches(domains, run("round-robin")).epoch(3))
    assert flat(batches.epoch(3))[4:] == flat(batches.epoch(3, 4))
    seven = JointBatches(domains, run("round-robin", size=5))
    assert [len(s[0].labels) for s in seven.epoch(0) if s[0].domain == 1] == [5, 5, 5, 8]
    drawn = [draw for step in batches._draws(2, False) for draw in step if draw.domain == 0]
    assert sorted(np.concatenate([draw.images for draw in drawn])) == list(range(40))


@pytest.mark.parametrize("order", ["given", "reversed"])
def test_turns_by_passes_show_every_domain_all_its_images_so_many_times(
    domains: list[Domain], order: str
) -> None:
    """40, 23 and 7 images in eights, and a resumed run goes on where the turns were."""
    config = run("joint")
    packed = TrainConfig(
        method="packnet", order="task-passes", packnet_order=order, batch_size=8,
        warmup=0, ramp=2, settle=1,
    )  # fmt: skip
    batches = JointBatches(domains, replace(config, train=packed))
    turns = [(0, 5), (1, 3), (2, 1)]
    if order == "reversed":
        turns.reverse()
    assert batches.turns_per_epoch == [steps for _, steps in turns]
    assert batches.own_sizes == [8, 8, 7]
    epochs = [list(batches.epoch(epoch)) for epoch in range(3)]
    assert [len(steps) for steps in epochs] == [batches.steps_per_epoch] * 3 == [9] * 3
    seen = [step[0].domain for steps in epochs for step in steps]
    assert seen == [domain for domain, steps in turns for _ in range(3 * steps)]
    drawn = [draw for epoch in range(3) for (draw,) in batches._draws(epoch, False)]
    for domain in range(3):
        images = np.concatenate([draw.images for draw in drawn if draw.domain == domain])
        assert (np.bincount(images) == 3).all()
    assert flat(epochs[1])[4:] == flat(batches.epoch(1, 4))

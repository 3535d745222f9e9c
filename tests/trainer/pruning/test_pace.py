"""Every domain's switches learn as often as every other's, whatever the order of the steps."""

from __future__ import annotations

from dataclasses import replace

import pytest

from prunion.trainer.config import TrainConfig
from prunion.trainer.pruning.pace import pace_of


@pytest.mark.parametrize("domains", [2, 3, 4])
@pytest.mark.parametrize("rounds", [2, 4, 9])  # steps of a domain in an epoch
@pytest.mark.parametrize("order", ["joint", "batch", "epoch"])
def test_no_domain_is_left_out(order: str, rounds: int, domains: int) -> None:
    train = replace(TrainConfig(), order=order, switch_every=8)
    epoch = rounds * (1 if order == "joint" else domains)
    ramp = 300 * epoch
    pace = pace_of(train, ramp, domains)
    updates = [0] * domains
    for step in range(ramp):
        present = {
            "joint": [*range(domains)],
            "batch": [step % domains],
            "epoch": [step % epoch // rounds],
        }
        for domain in present[order] if pace.learns_at(step) else ():
            updates[domain] += 1
    assert max(updates) - min(updates) <= 1 and min(updates) >= 72, updates
    # Over the ramp each one's scores may travel as far as the run says.
    assert updates[0] * pace.travel == pytest.approx(train.switch_travel, rel=0.05)

"""λ of the budget and of the sharing loss: how each moves, and what it charges."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from prunion.trainer.config import TrainConfig
from prunion.trainer.methods import Multiplier
from prunion.trainer.pruning import PaperLearner, Pressure, SwitchLearner
from prunion.trainer.pruning.multipliers import LARGEST_JACCARD, LARGEST_PULL, RATE
from prunion.trainer.pruning.sharing import sharing_gradient
from tests.trainer.pruning.test_sharing_losses import (
    KINDS,
    MASKS,
    network_cost,
    plain_cost,
    switched,
)


@pytest.mark.parametrize("beta", [0.5, 0.25, 0.1])
@pytest.mark.parametrize("kind", KINDS)
def test_every_loss_follows_the_ramp_and_keeps_what_matters(kind: str, beta: float) -> None:
    """The domains' own λ climbed against the pull to agree: to 50, or past the budget at once."""
    widths, domains, steps, every = (32, 32, 64, 64), 4, 384, 5
    starts = np.cumsum((0, *widths))
    full = sum(a * b for a, b in itertools.pairwise(widths))

    def cost(kept: torch.Tensor) -> torch.Tensor:
        sums = [kept[..., a:b].sum() for a, b in itertools.pairwise(starts)]
        return torch.stack([a * b for a, b in itertools.pairwise(sums)]).sum() / full

    torch.manual_seed(0)
    # Four domains that weigh the same channels by a factor of e each: they agree on some.
    matters = torch.exp(torch.randn(sum(widths))) * torch.exp(torch.randn(domains, sum(widths)))
    pressure = Pressure(TrainConfig(sharing=kind), cost, domains, every=every)  # type: ignore[arg-type]
    learner = SwitchLearner(domains, sum(widths), lr=1.5 * every / steps)
    learner.start(matters)
    for step in range(0, steps, every):
        target = 1 - (1 - beta) * min(1, step / (0.9 * steps))
        on = switched(learner)
        assert abs(float(cost(on.amax(0))) - target) < 0.16
        gradient = matters * (torch.randn_like(matters) - 0.3 * on)
        charge = pressure.charge(on, target, beta)
        learner.update(gradient, charge * on.shape[1])
    on = switched(learner)
    assert float(cost(on.amax(0))) == pytest.approx(beta, abs=0.03)
    least = {0.5: 0.88, 0.25: 0.75, 0.1: 0.55}[beta]
    assert float((matters * on).sum() / matters.sum()) > least


def test_a_multiplier_rises_while_violated_and_counts_zero_while_held() -> None:
    multiplier = Multiplier(rate=1.0, largest=2.0)
    assert multiplier.update(0.5) == 0.5
    assert multiplier.update(0.5) == 1.0
    assert multiplier.update(-0.25) == 0.0
    assert multiplier.value == 0.75
    for _ in range(10):
        multiplier.update(1.0)
    assert multiplier.value == 2.0


@pytest.mark.parametrize("plain", [False, True])
def test_jaccards_multiplier_is_bounded_although_it_is_never_met(plain: bool) -> None:
    config = TrainConfig(sharing="jaccard", domain_budget=False)
    pressure = Pressure(config, plain_cost(4), 2, plain=plain)
    for _ in range(200):
        pressure.charge(MASKS, 0.5, 0.5)
    assert pressure.sharing.value == (LARGEST_JACCARD if plain else 0.5 * LARGEST_PULL)


@pytest.mark.parametrize("kind", ["intersection", "jaccard"])
def test_the_pull_to_share_is_worth_half_a_price_at_most(kind: str) -> None:
    """And the budget is held beside it, by a λ of its own that a snapshot keeps."""
    cost = plain_cost(4)
    config = TrainConfig(sharing=kind)  # type: ignore[arg-type]
    pressure = Pressure(config, cost, 2)
    _, gradient = sharing_gradient(kind, MASKS, cost, 0.5)  # type: ignore[arg-type]
    _, price = sharing_gradient("union", MASKS, cost, 0.5)
    charge = pressure.charge(MASKS, 0.5, 0.5)
    expected = pressure.network.value * price + 0.5 * LARGEST_PULL * gradient
    assert pressure.network.value > 0
    torch.testing.assert_close(charge, expected)
    again = Pressure(config, cost, 2)
    again.restore(pressure.values())
    assert again.network.value == pressure.network.value
    assert pressure.figures(["a", "b"])["lambda_network"] == pressure.network.value


def test_every_domain_has_a_multiplier_of_its_own() -> None:
    pressure = Pressure(TrainConfig(sharing="none"), plain_cost(4), 2)
    rate = RATE * TrainConfig().switch_every  # a step of λ for every step of the switches
    masks = torch.tensor([[1.0, 1, 1, 1], [1, 0, 0, 0]])
    charge = pressure.charge(masks, 0.5, 0.5)
    first, second = (m.value for m in pressure.domains)
    assert first == pytest.approx(rate * (1 - 0.5) / 0.5)
    assert second == 0
    assert charge[0].tolist() == pytest.approx([first / 4] * 4)
    assert not charge[1].any()  # it holds its budget: λ counts as 0
    again = Pressure(TrainConfig(sharing="none"), plain_cost(4), 2)
    again.restore(pressure.values())
    assert again.values() == pressure.values()


@pytest.mark.parametrize("plain", [False, True])
def test_a_budget_loss_charges_its_own_domain_in_its_own_steps(plain: bool) -> None:
    """Eq. 5: L_B is the step's domain's; only the sharing loss is everybody's."""
    pressure = Pressure(TrainConfig(domain_budget=True), plain_cost(4), 3, plain=plain)
    before = [m.value for m in pressure.domains]
    masks = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 1], [1, 1, 1, 0]])
    charge = pressure.charge(masks, 0.5, 0.5, [1])
    _, sharing = sharing_gradient("union", masks, plain_cost(4), 0.5, plain=plain)
    torch.testing.assert_close(charge[[0, 2]], pressure.sharing.value * sharing[[0, 2]])
    assert (charge[1] > pressure.sharing.value * sharing[1]).all()
    moved = [m.value != old for m, old in zip(pressure.domains, before, strict=True)]
    assert moved == [False, True, False]


def test_the_papers_charges_are_scaled_to_units() -> None:
    """256 slices in a unit: charges add up, gradients of any sign only to the root."""
    masks = torch.tensor([[1.0, 1, 1, 0], [1, 1, 0, 1]])
    config = TrainConfig(recipe="paper", sharing="intersection", sharing_weight=0.5)
    one, many = (Pressure(config, plain_cost(4), 2, plain=True, slices=n) for n in (1, 256))
    charge = one.charge(masks, 0.5, 0.5)
    torch.testing.assert_close(16 * many.charge(masks, 0.5, 0.5), charge)
    assert many.values() == one.values()  # λ itself is the paper's


def test_absent_domains_keep_their_switches_under_the_papers_recipe() -> None:
    """They were all off after ten steps of another domain, with no gradient to come back by."""
    torch.manual_seed(0)
    pressure = Pressure(TrainConfig(), network_cost(), 3, plain=True)
    learner = PaperLearner(3, 14)
    for _ in range(40):
        gradient = torch.zeros(3, 14)
        gradient[0] = 1e-3 * torch.randn(14)
        learner.update(gradient, pressure.charge(switched(learner), 0.5, 0.5, [0]))
    assert not switched(learner)[0].all()
    assert switched(learner)[1:].all()


@pytest.mark.parametrize("kind", KINDS)
def test_a_fixed_weight_scales_the_gradient_while_the_constraint_is_violated(kind: str) -> None:
    cost = plain_cost(4)
    config = TrainConfig(sharing=kind, sharing_weight=0.25, domain_budget=False)
    for plain in (True, False):
        _, gradient = sharing_gradient(kind, MASKS, cost, 0.8, plain=plain)
        # The three units in use are within the budget: its own price is 0.
        beta = 0.8 if kind != "union" else 0.6
        charge = Pressure(config, cost, 2, plain=plain).charge(MASKS, beta, beta)
        torch.testing.assert_close(charge, 0.25 * gradient)
    met = torch.tensor([[1.0, 1, 1, 0]] * 2) if kind != "union" else torch.zeros(2, 4)
    assert not Pressure(config, cost, 2).charge(met, 0.75, 0.75).any()

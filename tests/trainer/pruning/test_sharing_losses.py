"""The papers' losses on small tensors: values, gradients, and what they do to switches."""

from __future__ import annotations

import functools
import itertools

import numpy as np
import pytest
import torch

from prunion.runtime.bundle import Layer, UnitTable
from prunion.trainer.backbone import trace
from prunion.trainer.channels import find_units
from prunion.trainer.config import TrainConfig
from prunion.trainer.cost import counted_pricer
from prunion.trainer.cost.cost_model import CostModel
from prunion.trainer.pruning import PaperLearner, Pressure, SwitchLearner, later_recipe
from prunion.trainer.pruning.learners import LEARNING_RATE, START, Learner
from prunion.trainer.pruning.sharing import domain_losses, sharing_gradient, sharing_loss
from tests.support.networks.small import Residual

KINDS = ("union", "intersection", "jaccard")


def switched(learner: Learner) -> torch.Tensor:
    """What a learner has on, 0/1 `[D, U]`."""
    return (learner.scores > 0).float()


def plain_cost(count: int) -> CostModel:
    """Every unit costs the same, as the paper counts switches."""
    slots = {("w", 0): np.arange(count)}
    table = UnitTable(count, slots, (Layer("w", (count,), 1),))
    return counted_pricer("params", table).cost_model()


@functools.cache
def network_cost() -> CostModel:
    return counted_pricer("params", find_units(trace(Residual(), 8, 8)).table).cost_model()


# Two domains: the first uses units 0 and 1, the second 1 and 2, nobody 3.
MASKS = torch.tensor([[1.0, 1, 0, 0], [0, 1, 1, 0]])


def test_the_losses_by_hand() -> None:
    cost = plain_cost(4)
    assert float(sharing_loss("union", MASKS, cost, 0.5)) == pytest.approx(3 / 4 - 0.5)
    assert float(sharing_loss("intersection", MASKS, cost, 0.5)) == pytest.approx(1 - 1 / (4 * 0.5))
    assert float(sharing_loss("jaccard", MASKS, cost, 0.5)) == pytest.approx(1 - 1 / 3)
    assert domain_losses(MASKS, cost, 0.25).tolist() == pytest.approx([0.25, 0.25])


def test_the_plain_gradients_by_hand() -> None:
    cost = plain_cost(4)

    def gradient(kind: str) -> torch.Tensor:
        return sharing_gradient(kind, MASKS, cost, 0.5, plain=True)[1]

    # Eq. 8: the derivative of a + b − ab by a is 1 − b, over four units.
    assert torch.equal(gradient("union"), (1 - MASKS.flip(0)) / 4)
    # Eq. 6: by a it is −b / (Mβ).
    assert torch.equal(gradient("intersection"), -MASKS.flip(0) / (4 * 0.5))
    # Eq. 9, quotient rule with |∩| = 1 and |∪| = 3: −(b·3 − 1·(1 − b)) / 9.
    expected = -(MASKS.flip(0) * 3 - (1 - MASKS.flip(0))) / 9
    torch.testing.assert_close(gradient("jaccard"), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_agree_with_finite_differences(kind: str) -> None:
    cost = network_cost()
    torch.manual_seed(1)
    soft = torch.rand(3, 14, dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda s: sharing_loss(kind, s, cost, 0.4), soft.requires_grad_(), atol=1e-7
    )
    assert torch.autograd.gradcheck(lambda s: domain_losses(s, cost, 0.4), soft, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_the_value_is_the_loss_on_every_pattern_of_switches(kind: str) -> None:
    cost = plain_cost(2)
    for bits in itertools.product([0.0, 1.0], repeat=4):
        masks = torch.tensor(bits).view(2, 2)
        for plain in (True, False):
            value, gradient = sharing_gradient(kind, masks, cost, 0.5, plain=plain)
            assert gradient.isfinite().all()  # of an empty union too
            assert value == pytest.approx(float(sharing_loss(kind, masks, cost, 0.5)))


def test_shared_prices_add_up_to_the_unions_marginal_cost() -> None:
    cost = network_cost()
    torch.manual_seed(2)
    masks = (torch.rand(4, 14) < 0.6).float()
    _, price = sharing_gradient("union", masks, cost, 0.5)
    kept = (masks.sum(0) > 0).double().requires_grad_()
    (marginal,) = torch.autograd.grad(cost(kept), kept)
    used = masks.sum(0) > 0
    torch.testing.assert_close((price * masks).sum(0)[used], marginal[used].float())


def test_jaccard_pulls_towards_what_all_share() -> None:
    cost = plain_cost(3)
    masks = torch.tensor([[1.0, 1, 0], [1, 1, 0], [1, 0, 1]])
    for plain in (True, False):
        _, gradient = sharing_gradient("jaccard", masks, cost, 0.5, plain=plain)
        assert (gradient[:, 0] < 0).all()  # everybody's: stay
        assert gradient[2, 1] < 0  # all but one: join
        assert gradient[2, 2] > 0  # one domain's alone: give up
    # Where two agree the plain gradient says nothing to them; the shared price does.
    assert sharing_gradient("jaccard", masks, cost, 0.5, plain=True)[1][0, 1] == 0
    assert sharing_gradient("jaccard", masks, cost, 0.5)[1][0, 1] > 0


def test_channels_that_became_important_stay() -> None:
    """A tenth of a score's way is enough to notice that a layer's last channels matter more."""
    learner = SwitchLearner(1, 400, lr=0.02)
    learner.start(torch.ones(1, 400))
    learner.scores = torch.full((1, 400), 0.5)
    torch.manual_seed(0)
    for _ in range(10):
        gradient = torch.randn(1, 400)
        gradient[:, 200:] *= 10
        learner.update(gradient, torch.ones(1, 400))
    idle, needed = learner.scores[0, :200].mean(), learner.scores[0, 200:].mean()
    assert 0.5 - needed < 0.35 * (0.5 - idle)


def test_units_that_may_not_move_are_nothing_to_those_that_may() -> None:
    """With more than half of the units outside a union, the median over all of them is 0."""
    torch.manual_seed(0)
    inside = torch.tensor([1, 4, 8, 9])
    kept = torch.zeros(12, dtype=torch.bool).index_fill(0, inside, True)
    train = TrainConfig(warmup=0, ramp=10, settle=0)
    later = later_recipe(train, lambda kept: kept.mean(), kept, steps_per_epoch=1)
    alone = SwitchLearner(1, 4, lr=0.1)
    idle = 1e-6  # how little the first unit matters
    for step in range(5):
        gradient = torch.tensor([[idle, 1, 1, 1]]) * (1 + torch.rand(1, 4))
        alone.update(gradient, torch.zeros(1, 4))
        wide = torch.zeros(1, 12).index_copy(1, inside, gradient)
        later.learn(step, kept.float()[None], wide, [0])
    assert torch.equal(later.learner.scores, alone.scores)
    assert torch.equal(later.chosen()[0] > 0, kept)
    moved = (1 - later.learner.scores[0]).abs()
    assert moved[0] < 0.01 * moved[1], "a unit that hardly matters hardly moves"


def descend(sharing: str, beta: float, domains: int = 3, **options: object) -> torch.Tensor:
    """Learn switches from noise and the losses alone; returns the final 0/1 switches."""
    cost = network_cost()
    config = TrainConfig(sharing=sharing, **options)  # type: ignore[arg-type]
    pressure = Pressure(config, cost, domains)
    torch.manual_seed(3)
    learner = SwitchLearner(domains, 14, lr=0.02)
    learner.start(torch.rand(domains, 14))
    for _ in range(300):
        charge = pressure.charge(switched(learner), beta, beta)
        learner.update(1e-3 * torch.randn(domains, 14), charge * 14)
    return switched(learner)


def test_the_union_loss_alone_prunes() -> None:
    masks = descend("union", 0.5, domain_budget=False)
    assert 0.2 < float(network_cost()(masks.amax(0))) <= 0.55


def test_the_plain_union_gradient_alone_prunes_nothing() -> None:
    """Why the union's price is shared: eq. 8 is flat where all domains agree (DESIGN's warning)."""
    config = TrainConfig(sharing="union", domain_budget=False)
    pressure = Pressure(config, network_cost(), 3, plain=True)
    learner = PaperLearner(3, 14)
    for _ in range(50):
        charge = pressure.charge(switched(learner), 0.5, 0.5)
        learner.update(torch.zeros(3, 14), charge)
    assert switched(learner).all()
    assert pressure.sharing.value > 0  # λ grew, but there was nothing to multiply


def test_budget_losses_alone_hold_each_domain_but_not_the_union() -> None:
    """BA²: the domains agree on nothing, so together they keep nearly everything."""
    masks, cost = descend("none", 0.5), network_cost()
    assert all(float(cost(row)) <= 0.55 for row in masks)
    assert float(cost(masks.amax(0))) > 0.6


@pytest.mark.parametrize("kind", ["intersection", "jaccard"])
def test_the_other_losses_make_domains_share(kind: str) -> None:
    def jaccard(masks: torch.Tensor) -> float:
        return float(masks.amin(0).sum() / masks.amax(0).sum())

    alone, together = descend("none", 0.5), descend(kind, 0.5)
    assert jaccard(together) > jaccard(alone) + 0.1
    assert float(network_cost()(together.amax(0))) <= 0.55


def test_the_papers_scores_move_by_the_learning_rate_whatever_the_gradient() -> None:
    learner = PaperLearner(1, 3)
    assert torch.equal(learner.scores, torch.full((1, 3), START))
    gradient = torch.tensor([[5.0, 1e-4, -1.0]])
    for _ in range(10):
        assert switched(learner)[0, 0] == 1
        learner.update(gradient, torch.zeros(1, 3))
    expected = START - 10 * LEARNING_RATE * gradient.sign()
    torch.testing.assert_close(learner.scores, expected, atol=2e-6, rtol=0)
    learner.update(gradient, torch.zeros(1, 3))
    assert switched(learner)[0].tolist() == [0, 0, 1]  # after a thousandth of travel: off
    learner.update(-1e3 * gradient, torch.zeros(1, 3))
    for _ in range(30):
        learner.update(-1e3 * gradient, torch.zeros(1, 3))
    assert learner.returned == 2


def test_the_papers_adam_is_torchs() -> None:
    torch.manual_seed(4)
    learner = PaperLearner(2, 5)
    scores = torch.full((2, 5), START, requires_grad=True)
    adam = torch.optim.Adam([scores], lr=LEARNING_RATE)
    for _ in range(20):
        gradient, charge = torch.randn(2, 2, 5)
        learner.update(gradient, charge)
        scores.grad = gradient + charge
        adam.step()
    torch.testing.assert_close(learner.scores, scores.detach())

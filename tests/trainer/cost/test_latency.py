"""Milliseconds as a cost: exact on masks, differentiable between, kept by the projection."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from prunion.runtime.bundle import Fit, Grid, Layer, Profile, UnitTable, monotone, write_profile
from prunion.runtime.errors import BudgetError
from prunion.trainer.backbone import trace
from prunion.trainer.channels import find_units
from prunion.trainer.config import BudgetConfig
from prunion.trainer.cost import latency_pricer, make_budget, profile_doubts, select_union
from prunion.trainer.cost.latency import LatencyModel, LatencyPricer
from prunion.trainer.pruning.sharing import union_price
from tests.support.networks.small import Depthwise, Plain, Residual, SqueezeExcite, domain_net

UNITS = [domain_net(model()).units for model in (Plain, Residual, Depthwise, SqueezeExcite)]


def made_up(table: UnitTable, seed: int = 0, round_to: int = 1) -> Profile:
    """Random times that only grow, over three widths of every axis."""
    random = np.random.default_rng(seed)
    grids, layers = [], {}
    for number, layer in enumerate(table.layers):
        out, inside = (tuple(sorted({1, -(-n // 2), n})) for n in layer.shape[:2])
        ms = random.random((len(out), len(inside))).cumsum(0).cumsum(1)
        grids.append(Grid(out, inside, monotone(ms)))
        layers[layer.weight] = (layer, number)
    fit = Fit(1.1, 0.3, 0.01, 0.02)
    machine = {"cpu": "made up"}
    return Profile("net", (8, 8), "cpu", "CPU", 1, 1, round_to, machine, layers, tuple(grids), fit)


def priced(which: int, seed: int = 0) -> LatencyPricer:
    return LatencyPricer(UNITS[which].table, made_up(UNITS[which].table, seed))


@pytest.mark.parametrize("which", range(len(UNITS)))
def test_the_trained_cost_is_the_predicted_one(which: int) -> None:
    pricer = priced(which)
    cost, count = pricer.cost_model(), pricer.units.count
    full = pricer.of(np.ones(count, bool))
    random = np.random.default_rng(0)
    for share in (0.0, 0.2, 0.5, 0.8, 1.0):
        alive = random.random(count) < share
        assert float(cost(torch.from_numpy(alive))) == pytest.approx(
            pricer.of(alive) / full, rel=1e-12
        )


def test_one_layer_by_hand() -> None:
    units = np.arange(4)
    layer = Layer("w", (4, 2), 1)
    table = UnitTable(4, {("w", 0): units}, (layer,))
    grid = Grid((2, 4), (2,), np.array([[1.0], [3.0]]))
    profile = made_up(table)
    profile = Profile(**{**vars(profile), "grids": (grid,), "layers": {"w": (layer, 0)}})
    model = LatencyModel(LatencyPricer(table, profile))
    kept = torch.tensor([1.0, 1.0, 0.5, 0.5], requires_grad=True)
    total = model.absolute(kept)
    assert total.item() == pytest.approx(1.1 * 2.0 + 0.3)  # halfway between 2 and 4 channels
    total.backward()
    assert kept.grad is not None
    assert kept.grad.tolist() == pytest.approx([1.1] * 4)  # 2 ms over 2 channels, times 1.1
    assert model.absolute(torch.zeros(4)).item() == pytest.approx(1.1 * 1.0 + 0.3)


@pytest.mark.parametrize("which", range(len(UNITS)))
def test_the_gradient_is_that_of_the_interpolation(which: int) -> None:
    pricer = priced(which)
    torch.manual_seed(1)
    # Between the measured widths; at them the slope changes.
    kept = (0.3 + 0.4 * torch.rand(pricer.units.count, dtype=torch.float64)).requires_grad_()
    assert torch.autograd.gradcheck(pricer.cost_model(), kept)


def test_a_full_network_still_has_a_price_for_every_channel() -> None:
    pricer = priced(1)
    value, price = union_price(torch.ones(2, pricer.units.count), pricer.cost_model())
    assert value == pytest.approx(1.0)
    assert (price > 0).all()


@settings(max_examples=100)
@given(which=st.integers(0, len(UNITS) - 1), seed=st.integers(0, 1000), unit=st.integers(0, 1000))
def test_one_more_channel_never_saves_time(which: int, seed: int, unit: int) -> None:
    pricer = priced(which, seed)
    count = pricer.units.count
    alive = np.random.default_rng(seed).random(count) < 0.5
    more = alive.copy()
    more[unit % count] = True
    assert pricer.of(more) >= pricer.of(alive)


@settings(max_examples=150)
@given(
    which=st.integers(0, len(UNITS) - 1),
    limit=st.floats(0.05, 1.0),
    in_time=st.booleans(),
    multiple=st.sampled_from([1, 2, 4]),
    seed=st.integers(0, 1000),
)
def test_every_selection_meets_its_milliseconds(
    which: int, limit: float, in_time: bool, multiple: int, seed: int
) -> None:
    units, pricer = UNITS[which], priced(which, seed)
    full = pricer.of(np.ones(units.table.count, bool))
    asked: float | str = f"{limit * full:.6f}ms" if in_time else limit
    config = BudgetConfig(asked, "latency", multiple, "device.json")
    try:
        budget = make_budget(config, pricer)
    except BudgetError as refusal:
        told = str(refusal).rsplit("at least ", 1)[1]
        least = BudgetConfig(told.strip('"') if in_time else float(told), "latency", multiple, "d")
        make_budget(least, pricer)
        assert least.allowed(full) > config.allowed(full)
        return
    score = np.random.default_rng(seed).random(units.table.count)
    alive = select_union(score, budget)
    assert pricer.of(alive) <= budget.allowed <= full * limit + 1e-5
    for members in units.table.widths:
        width = int(alive[members].sum())
        assert width >= 1
        assert width % multiple == 0 or width == len(members)


@pytest.mark.parametrize(
    ("limit", "allowed"),
    [
        (0.5, 5.0),
        ("0.5", 5.0),
        ("50%", 5.0),
        ("5ms", 5.0),
        ("800us", 0.8),
        ("0.5 s", 500.0),
        ("0.5ms", 0.5),
    ],
)
def test_a_limit_is_a_share_or_a_time(limit: float | str, allowed: float) -> None:
    assert BudgetConfig(limit, "latency", 1, "d").allowed(10.0) == pytest.approx(allowed)


def test_a_profile_of_another_network_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "device.json"
    write_profile(file, made_up(UNITS[0].table))
    assert latency_pricer(file, UNITS[0].table).units.count == UNITS[0].table.count
    with pytest.raises(BudgetError, match=r"device\.json has no layer conv3\.weight"):
        latency_pricer(file, UNITS[1].table)
    layers = tuple(Layer(x.weight, x.shape, x.positions * 4) for x in UNITS[0].table.layers)
    other = UnitTable(UNITS[0].table.count, UNITS[0].table.slots, layers)
    with pytest.raises(BudgetError, match=r"another network: conv1\.weight is .* at 64 positions"):
        latency_pricer(file, other)
    fewer = UnitTable(UNITS[0].table.count, UNITS[0].table.slots, UNITS[0].table.layers[:1])
    with pytest.raises(BudgetError, match=r"layer conv2\.weight that the network lacks"):
        latency_pricer(file, fewer)


def test_a_profile_of_no_time_is_refused(tmp_path: Path) -> None:
    """It ended in a division by zero."""
    file, profile = tmp_path / "device.json", made_up(UNITS[0].table)
    grids = tuple(Grid(g.out, g.inside, 0 * g.ms) for g in profile.grids)
    for changed in (
        replace(profile, grids=grids, fit=Fit(1.0, 0.0, 0.01, 0.02)),
        replace(profile, fit=Fit(1e-300, 0.0, 0.01, 0.02)),
    ):
        write_profile(file, changed)
        with pytest.raises(BudgetError, match=r"device\.json says that the network takes \S+ ms"):
            latency_pricer(file, UNITS[0].table)


def test_a_profile_that_contradicts_itself_is_refused_and_a_doubtful_one_told(
    tmp_path: Path,
) -> None:
    file, profile = tmp_path / "device.json", made_up(UNITS[0].table)
    write_profile(file, replace(profile, samples=((1.0, 1.01), (2.0, 1.97))))
    assert not list(profile_doubts(latency_pricer(file, UNITS[0].table).profile, (8, 8)))
    for changed in (
        replace(profile, samples=((1.0, 1.01), (1.0, 100.0))),
        replace(profile, fit=Fit(1.1, 0.3, 0.5, 0.02)),
    ):
        write_profile(file, changed)
        with pytest.raises(BudgetError, match=r"device\.json: fit\.worst_error is 0\.02, and of"):
            latency_pricer(file, UNITS[0].table)
    off = replace(profile, fit=Fit(1.1, 0.3, 0.5, 0.9))
    told = list(profile_doubts(off, (64, 64)))
    assert "off by 90% on networks" in told[0] and "images of 8x8, this run's are 64x64" in told[1]


def test_widths_that_were_not_measured_are_refused() -> None:
    units = UNITS[0]
    pricer = LatencyPricer(units.table, made_up(units.table, round_to=4))
    make_budget(BudgetConfig(1.0, "latency", 8, "d"), pricer)
    with pytest.raises(BudgetError, match=r"round_to is 6.* multiples of 4: set round_to = 4"):
        make_budget(BudgetConfig(1.0, "latency", 6, "d"), pricer)


def test_a_profile_of_a_kept_layer_does_not_price_its_cuts(tmp_path: Path) -> None:
    table = UNITS[0].table
    profile = made_up(table)
    layer, number = profile.layers["conv1.weight"]
    grids = list(profile.grids)
    grids[number] = Grid((layer.shape[0],), (layer.shape[1],), grids[number].ms[-1:, -1:])
    write_profile(tmp_path / "device.json", replace(profile, grids=tuple(grids)))
    with pytest.raises(BudgetError, match=r"conv1.weight was measured at one width, as \[backbone"):
        latency_pricer(tmp_path / "device.json", table)
    kept = find_units(trace(Plain(), 8, 8), ("conv1",)).table
    latency_pricer(tmp_path / "device.json", kept)


def test_a_profile_names_what_ran_it() -> None:
    profile = replace(made_up(UNITS[0].table), machine={"cpu": "a CPU", "gpu": "a GPU"})
    assert profile.describe().startswith("a CPU, CPU, batch 1")
    assert replace(profile, provider="CUDAExecutionProvider").describe().startswith("a GPU, CUDA")
    assert replace(profile, machine={}).describe().startswith("unknown, CPU")

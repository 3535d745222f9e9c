"""Weights of a domain's own: picked layers, owned weights, and what a file gives back of each."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from prunion.runtime.bundle import completed, own_weights, pack_bits
from prunion.trainer.config import METHODS, TrainConfig
from prunion.trainer.methods import WeightAdapter
from prunion.trainer.methods.packnet import FREE, OwnedWeights
from prunion.trainer.methods.residual.series import SeriesSite
from prunion.trainer.methods.taps import PickedLayers
from prunion.trainer.network import adapt_network, finish_weights, merge_weights
from tests.support.networks.small import Residual, domain_net
from tests.trainer.methods.answering import images, shaken, shared

OWN = [method for method, traits in METHODS.items() if traits.own_weights]


def free_share(adapter: OwnedWeights) -> float:
    """How many of the weights nobody owns."""
    owners = [adapter.get_buffer(f"owner_{name.replace('.', '/')}") for name in adapter.names]
    owner = torch.cat([x.flatten() for x in owners])
    return float((owner == FREE).double().mean())


def test_layers_are_picked_by_their_scores() -> None:
    weight = shared()
    adapter = PickedLayers(TrainConfig(method="taps", taps_lambda=2.0), weight, 2)
    shaken(adapter.delta)
    with torch.no_grad():
        adapter.scores["a/weight"][1] = 0.05
    assert [adapter.picked(domain) for domain in (0, 1)] == [list(weight), ["b.weight"]]
    assert torch.equal(adapter.weights(weight, 1)["a.weight"], weight["a.weight"])
    assert adapter.stored(1).keys() == {"added:b.weight"}
    assert adapter.extra_bits() == 32 * (108 + 600 + 600)
    assert adapter.penalty([0], [1, 1], "warmup") is None
    upstream = torch.randn(4, 3, 3, 3)
    (upstream * adapter.weights(weight, 1)["a.weight"]).sum().backward()
    grad = adapter.scores["a/weight"].grad
    expected = (upstream.flatten() * adapter.delta["a/weight"][1]).sum()
    assert grad is not None
    torch.testing.assert_close(grad[1], expected)  # though it is off
    penalty = adapter.penalty([0, 1], [1, 1], "ramp")
    assert penalty is not None
    assert penalty.item() == pytest.approx(2 * (0.15 + (0.05 + 0.15) / 2))


def test_layers_that_go_on_and_off_are_picked_for_good_when_settling_begins() -> None:
    """By how often they were on, wherever their scores stand in the last step."""
    weight, train = shared(), TrainConfig(method="taps")
    adapter = PickedLayers(train, weight, 2)
    shaken(adapter.delta)

    def moved(often_on: float, rarely_on: float) -> None:
        with torch.no_grad():
            adapter.scores["a/weight"].copy_(torch.tensor([often_on, 0.15]))
            adapter.scores["b/weight"].copy_(torch.tensor([rarely_on, -0.3]))

    for step in range(300):
        moved(0.0999 if step % 3 == 2 else 0.1001, 0.1001 if step % 3 == 2 else 0.0999)
        adapter.stepped([0, 1])
        assert not adapter.advance(weight, 0, "ramp")
    for _ in range(100):  # steps of the other domain: nothing of this one moves meanwhile
        adapter.stepped([1])
    assert adapter.penalty([0, 1], [1, 1], "ramp") is not None
    assert adapter.picked(0) == ["b.weight"]  # as it happens
    state = {name: value.clone() for name, value in adapter.state_dict().items()}
    assert adapter.advance(weight, 0, "settle")
    assert [adapter.picked(domain) for domain in (0, 1)] == [["a.weight"], ["a.weight"]]
    assert adapter.penalty([0, 1], [1, 1], "settle") is None
    assert not any(score.requires_grad for score in adapter.scores.values())
    assert all(row.requires_grad for row in adapter.delta.values())
    assert not adapter.advance(weight, 0, "settle")  # once
    again = PickedLayers(train, weight, 2)  # a run that was interrupted in between
    again.load_state_dict(state)
    assert again.advance(weight, 0, "settle")
    assert again.picked(0) == ["a.weight"]
    adapter.keep_rows(torch.tensor([1]))
    assert adapter.often.shape == (1, 2)


def test_layers_picked_before_there_was_a_count_stay_as_they_ended() -> None:
    weight, train = shared(), TrainConfig(method="taps")
    adapter = PickedLayers(train, weight, 2)
    with torch.no_grad():
        adapter.scores["a/weight"].copy_(torch.tensor([0.2, 0.0]))
    state = {
        n: x for n, x in adapter.state_dict().items() if n not in ("often", "counted", "fixed")
    }
    again = PickedLayers(train, weight, 2)
    again.load_state_dict(state)
    assert not again.advance(weight, 0, "settle")
    assert [again.picked(domain) for domain in (0, 1)] == [["a.weight", "b.weight"], ["b.weight"]]


def test_layers_are_picked_by_the_steps_there_were() -> None:
    """Each domain's own few: an average that began at 1 kept what was off in most of them."""
    weight = shared()
    adapter = PickedLayers(TrainConfig(method="taps"), weight, 2)
    for step, turn in enumerate([[0, 1]] * 6 + [[0]] * 4):
        with torch.no_grad():
            adapter.scores["a/weight"][0] = 0.15 if step in (0, 3, 6, 9) else 0.0
            adapter.scores["b/weight"][1] = 0.15 if step in (0, 5) else 0.0
        adapter.stepped(turn)
    torch.testing.assert_close(adapter.often, torch.tensor([[0.4, 1.0], [1.0, 1 / 3]]))
    assert adapter.advance(weight, 0, "settle")
    assert [adapter.picked(domain) for domain in (0, 1)] == [["b.weight"], ["a.weight"]]


@pytest.mark.parametrize("order", ["given", "reversed"])
def test_weights_have_one_owner_and_keep_what_they_learned(order: Any) -> None:
    weight = shared()
    train = TrainConfig(method="packnet", packnet_order=order, packnet_prune=0.75)
    adapter = OwnedWeights(train, weight, 2)
    turns = [0, 1] if order == "given" else [1, 0]
    source = adapter.weights(weight, turns[0])["a.weight"]
    assert int((source != 0).sum()) == 108 - 54  # half of the backbone's own
    largest = weight["a.weight"].abs().flatten().sort().values[54]
    assert torch.equal(source != 0, weight["a.weight"].abs() >= largest)
    for task, domain in enumerate(turns):
        adapter.advance(weight, task, "ramp")
        assert free_share(adapter) == 0
        shaken(adapter)
        before = adapter.weights(weight, turns[0])
        adapter.advance(weight, task, "settle")
        now = adapter.weights(weight, domain)
        if task == 0:
            assert free_share(adapter) == pytest.approx(0.75 * 0.5, abs=0.01)
            kept = now["a.weight"][source == 0].abs()
            dropped = before["a.weight"][(source == 0) & (now["a.weight"] == 0)].abs()
            assert kept[kept > 0].min() >= dropped.max()
            first = {name: value.clone() for name, value in now.items()}
        else:
            assert free_share(adapter) == 0  # the last keeps all
            for name, value in adapter.weights(weight, turns[0]).items():
                assert torch.equal(value, first[name])
            gradient = torch.autograd.grad(now["a.weight"].sum(), adapter.free[0])[0]
            assert torch.equal(gradient != 0, first["a.weight"] == 0)
    assert adapter.bits() == 0
    assert adapter.shared_bits() == 2 * (108 + 600)  # turns 0 to 2


@pytest.mark.parametrize("domains", [1, 3, 4])  # with the backbone two and four, powers of two
def test_turns_are_stored_in_as_few_bits_as_they_are_counted_with(domains: int) -> None:
    """Those of an earlier prunion, counted from 1, are the same weights."""
    weight = shared()
    adapter = OwnedWeights(TrainConfig(method="packnet"), weight, domains)
    for task in range(domains):
        adapter.advance(weight, task, "ramp")
        shaken(adapter)
        adapter.advance(weight, task, "settle")
    base, common = adapter.base(weight), adapter.shared_parts()
    for name in weight:
        assert len(common[f"turns:{name}"]) == math.ceil(math.log2(1 + domains))
    for domain in range(domains):
        earlier = {}
        for name in weight:
            owner = adapter.get_buffer(f"owner_{name.replace('.', '/')}").numpy().reshape(-1)
            digits = [pack_bits(owner >> place & 1) for place in range(3)]
            earlier[f"owners:{name}"] = np.stack(digits)
            earlier[f"task:{name}"] = np.array([2 + domain], np.uint8)
        for parts in (completed(adapter.stored(domain), common), earlier):
            made = own_weights(parts, lambda name: base[name].detach().numpy())
            for name, expected in adapter.weights(weight, domain).items():
                np.testing.assert_array_equal(made[name], expected.detach().numpy())


@pytest.mark.parametrize("method", OWN)
def test_a_file_gives_back_the_very_weights(method: Any) -> None:
    """What a pack holds, made into weights by the runtime without torch."""
    net = domain_net(Residual(), (3, 4, 2))
    adapt_network(net, TrainConfig(method=method))
    if method == "svd":
        shaken(net.adapter)  # type: ignore[arg-type]
        net.adapter.advance({}, 0, "settle")  # type: ignore[union-attr]
    if method == "packnet":
        net.adapter.advance({}, 1, "ramp")  # type: ignore[union-attr]
    adapter = net.adapter
    assert adapter is not None
    sites = [m for m in net.modules() if isinstance(m, SeriesSite)]
    for module in sites or [adapter]:
        shaken(module)
    finish_weights(net)
    adapter = net.adapter
    assert isinstance(adapter, WeightAdapter)
    assert adapter.domains == 3
    base = {k: v.detach().clone() for k, v in net.trunk.named_parameters()}
    base |= {k: v.clone() for k, v in adapter.base(base).items()}
    common = adapter.shared_parts()
    for domain in range(3):
        expected = net.own_weights(domain)
        parts = completed(adapter.stored(domain), common)
        made = own_weights(parts, lambda name: base[name].numpy())
        for name in expected:
            got = torch.from_numpy(made[name]) if name in made else base[name]
            torch.testing.assert_close(got, expected[name].detach(), rtol=1e-5, atol=1e-6)
    bits = sum(8 * v.nbytes for d in range(3) for v in adapter.stored(d).values())
    bits += sum(8 * v.nbytes for v in common.values())
    counted = adapter.extra_bits()
    small = 3 * 8 * 32 * 4  # bits that fill the last byte, numbers that are fixed, tasks
    assert counted <= bits <= counted + small
    second = {name: value.clone() for name, value in net.own_weights(1).items()}
    adapter.keep_rows(torch.tensor([1]))
    assert all(torch.equal(value, second[name]) for name, value in net.own_weights(0).items())


def test_a_checkpoint_of_one_domain_becomes_a_network_like_any_other() -> None:
    for method in OWN:
        net = domain_net(Residual(), (3,))
        adapt_network(net, TrainConfig(method=method))
        if net.adapter is None:  # fine-tuning tunes the trunk itself
            continue
        for site in [m for m in net.modules() if isinstance(m, SeriesSite)] or [net.adapter]:
            shaken(site)
        with torch.no_grad():
            rows = torch.zeros(4, dtype=torch.int64)
            before = net.eval().logits(images(), rows)
            merge_weights(net)
            assert net.adapter is None
            torch.testing.assert_close(
                net.logits(images(), rows), before, rtol=1e-4, atol=1e-5, msg=method
            )
